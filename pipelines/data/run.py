"""Data sets made and checked: import-voc, shapes, check."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.data.config import CheckConfig, ImportVocConfig, MakeShapesConfig
from sparse_detr.config_dict import to_dict
from sparse_detr.data.coco import read_coco, verify_images, write_coco
from sparse_detr.data.coco_index import CocoIndex
from sparse_detr.data.decode import decode_image
from sparse_detr.data.shapes import ShapesConfig, write_shapes
from sparse_detr.data.voc import import_voc
from sparse_detr.errors import ImageError
from sparse_detr.storage.location import locate
from sparse_detr.storage.output import checked_file, claim_folder

SETTINGS = "shapes.json"
"""Settings of a generated data set, written first: it says that the rest may be replaced."""

Progress = Callable[[int, int], None]
"""Called with the number of things done, and of all."""


def _ignore(_done: int, _total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """Content of a data set, and what is wrong with it."""

    source: str
    """The annotation file."""
    images: int
    boxes: int
    crowd: int
    """Boxes that mark crowds; evaluation ignores what is found there."""
    classes: dict[str, int]
    """Boxes of each class."""
    dropped: tuple[str, ...] = ()
    """Boxes that were left out, each with its reason."""
    broken: tuple[str, ...] = ()
    """Images that cannot be decoded, each with its reason."""


def run_import_voc(config: ImportVocConfig) -> DataReport:
    """Write the COCO file and report on what it holds.

    Raises:
        AnnotationError: the folder is no VOC folder, or a file of it cannot be read.
        OutputExistsError: the JSON file exists already.
    """
    destination = checked_file(config.output, config.existing)
    data, dropped = import_voc(config.root, config.split)
    write_coco(destination, data)
    return _report(read_coco(destination.uri), dropped=tuple(str(box) for box in dropped))


def run_shapes(config: MakeShapesConfig, on_progress: Progress = _ignore) -> DataReport:
    """Write the data set and report on its training half.

    Raises:
        OutputExistsError: the folder holds a data set already; one that was not generated is never overwritten.
    """
    root = locate(config.output)
    splits = {"train": config.train, "val": config.val}
    shapes = ShapesConfig(images=sum(splits.values()), size=config.size, seed=config.seed)
    results = (*(f"{split}.json" for split in splits), *splits, SETTINGS)
    claim_folder(root, config.existing, results, marks=(SETTINGS,), holds=lambda: "a data set").clear()
    root.child(SETTINGS).write_bytes(json.dumps({"splits": splits, "shapes": to_dict(shapes)}, indent=1).encode())
    write_shapes(root, shapes, splits, on_progress)
    return _report(read_coco(root.child("train.json").uri))


def run_check(config: CheckConfig, on_progress: Progress = _ignore) -> DataReport:
    """Read, find, and decode.

    Raises:
        AnnotationError: the file is not what it claims to be, or names images that are missing.
    """
    index = read_coco(config.annotations)
    verify_images(index, config.images)
    broken: list[str] = []
    folder = locate(config.images)
    for done, image in enumerate(index.images if config.decode else (), start=1):
        try:
            decode_image(folder.child(image.file_name).read_bytes(), name=image.file_name)
        except ImageError as error:
            broken.append(str(error))
        on_progress(done, len(index))
    return _report(index, broken=tuple(broken))


def _report(index: CocoIndex, *, dropped: tuple[str, ...] = (), broken: tuple[str, ...] = ()) -> DataReport:
    labels: Counter[int] = Counter()
    crowd = 0
    for image in index.images:
        labels.update(image.labels.tolist())
        crowd += int(image.crowd.sum())
    return DataReport(
        source=index.source,
        images=len(index),
        boxes=labels.total(),
        crowd=crowd,
        classes={name: labels[label] for label, name in enumerate(index.classes.names)},
        dropped=dropped + tuple(str(box) for box in index.dropped),
        broken=broken,
    )
