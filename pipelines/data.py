"""The verbs that make and check data sets: import-voc, shapes, check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparse_detr.data.coco import read_coco, verify_images, write_coco
from sparse_detr.data.coco_index import CocoIndex
from sparse_detr.data.decode import decode_image
from sparse_detr.data.shapes import ShapesConfig, write_shapes
from sparse_detr.data.voc import import_voc
from sparse_detr.errors import ImageError, OutputExistsError, require
from sparse_detr.storage import locate

Progress = Callable[[int, int], None]
"""Called with the number of things done, and of all."""


def _ignore(_done: int, _total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportVocConfig:
    """Turn one split of a Pascal VOC folder (XML files) into COCO JSON; boxes that cannot be used are listed."""

    root: Path
    """Folder that holds Annotations, ImageSets/Main and JPEGImages."""
    split: str
    """Name of the split, as in ImageSets/Main/<split>.txt."""
    output: str
    """Path or URI of the JSON file to write."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeShapesConfig:
    """Generate the shapes data set: JPEGs and COCO JSON, the same for the same seed."""

    output: str
    """Folder or `s3://bucket/prefix`; gets train.json, val.json, train/ and val/."""
    train: int = 2000
    """Training images."""
    val: int = 300
    """Held-out images."""
    size: int = 128
    """Height and width of an image in pixels."""
    seed: int = 0
    """Everything random follows from it."""
    overwrite: bool = False
    """Write into a folder that already holds a data set."""

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}; give at least 1 image")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """Read annotations as training would, find the images, and say what is there and what is wrong."""

    annotations: str
    """Path or URI of a COCO JSON file."""
    images: str
    """Folder or prefix that its file names are relative to."""
    decode: bool = True
    """Also decode every image; `--no-decode` only looks whether they exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What a data set holds."""

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
    destination = locate(config.output)
    if destination.exists() and not config.overwrite:
        raise OutputExistsError(f"output: {destination.uri} exists; give another name, or --overwrite")
    data, dropped = import_voc(config.root, config.split)
    write_coco(destination, data)
    return _report(read_coco(destination.uri), dropped=tuple(str(box) for box in dropped))


def run_shapes(config: MakeShapesConfig, on_progress: Progress = _ignore) -> DataReport:
    """Write the data set and report on its training half.

    Raises:
        OutputExistsError: the folder holds a data set already.
    """
    root = locate(config.output)
    if root.child("train.json").exists() and not config.overwrite:
        raise OutputExistsError(f"output: {root.uri} holds a data set; give another folder, or --overwrite")
    shapes = ShapesConfig(images=config.train + config.val, size=config.size, seed=config.seed)
    write_shapes(root, shapes, {"train": config.train, "val": config.val}, on_progress)
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
