"""COCO evaluation of a model on a data set, sharded over a Ray cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.predict.config import DetectionConfig
from pipelines.predict.manifest import Manifest
from pipelines.predict.run import Progress, load_checked
from pipelines.predict.sinks import coco_results
from pipelines.predict.workers import Work, stream
from pipelines.ray_session import ray_session
from sparse_detr.data.coco import read_coco
from sparse_detr.data.coco_index import CocoIndex, DroppedBox, verify_images
from sparse_detr.errors import ConfigError, ImageError, OutputExistsError
from sparse_detr.evaluation.coco_ap import CocoMetrics, evaluate_coco
from sparse_detr.records import Classes
from sparse_detr.storage import Location, check_access, locate

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(DetectionConfig):
    """A model, a data set in COCO form, and how to run the one on the other."""

    annotations: str
    """COCO JSON with the true boxes of the images below `images`."""
    output: str | None = None
    """Also write the detections to this file (a path or `s3://` URI), as COCO results in JSON."""
    overwrite: bool = False
    """Replace the file at `output` where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult:
    """COCO's numbers, and what it took to get them."""

    metrics: CocoMetrics
    images: int
    dropped: tuple[DroppedBox, ...]
    """Bad boxes of the annotations: they do not count as objects."""
    detections: int
    keep_ratio: float
    seconds: float
    """Start of the workers included."""
    images_per_second: float


def evaluate(config: EvaluateConfig, *, on_progress: Progress | None = None) -> EvaluateResult:
    """Detect objects in the images of a data set and compare them with its boxes, as COCO does.

    Raises:
        AnnotationError: the annotations cannot be read, or name images that are missing.
        ConfigError: the model does not know a class of the data.
        ImageError: an image is broken; a number for the rest would not be the data set's.
        OutputExistsError: there is a file at `output` already and `overwrite` is False, or a folder.
        CheckpointError, StorageError: model, annotations, images or output cannot be used.
    """
    started = time.monotonic()
    output = None if config.output is None else _checked_output(config.output, overwrite=config.overwrite)
    annotations, root = locate(config.annotations), locate(config.images)
    for location in (annotations, root):
        check_access(location)
    index = read_coco(annotations.uri)
    verify_images(index, root.uri)
    model = load_checked(config)
    category_of = match_categories(model.classes, model.config.num_classes, index.classes)
    keep_ratio = model.config.keep_ratio if config.keep_ratio is None else config.keep_ratio
    del model  # the workers have their own
    results: list[dict[str, Any]] = []
    for rows in _detect(config, index, on_progress):
        results += translate_results(coco_results(rows), category_of)
    if output is not None:
        output.write_bytes(json.dumps(results, allow_nan=False).encode())
    seconds = time.monotonic() - started
    return EvaluateResult(
        metrics=evaluate_coco(index.ground_truth(), results),
        images=len(index),
        dropped=index.dropped,
        detections=len(results),
        keep_ratio=keep_ratio,
        seconds=seconds,
        images_per_second=len(index) / seconds,
    )


def _checked_output(uri: str, *, overwrite: bool) -> Location:
    output = locate(uri)
    folder = locate(output.uri.rpartition("/")[0] or "/")
    check_access(folder, writable=True)
    if output.is_dir():
        raise OutputExistsError(f"output: {output.uri} is a folder; name a file in it")
    if output.exists() and not overwrite:
        raise OutputExistsError(f"output: {output.uri} exists; choose another file, or give overwrite to replace it")
    return output


def match_categories(model: Classes | None, num_classes: int, data: Classes) -> dict[int, int]:
    """Category ids as the model gives them -> category ids of the data; ids that only the model knows are left out.

    Classes are matched by id and name where both agree, else by name (a data set that was numbered anew). A model
    without class names gives raw category ids.

    Raises:
        ConfigError: a class of the data is not among the model's; names both.
    """
    if model is None:
        if max(data.category_ids, default=0) < num_classes:
            return {category: category for category in data.category_ids}
        raise ConfigError(
            f"annotations: category ids go to {max(data.category_ids)}, but the model has no class names and scores "
            f"ids 0 to {num_classes - 1}; evaluate it on data of the ids that it was trained on"
        )
    known = list(zip(model.names, model.category_ids, strict=True))
    wanted = list(zip(data.names, data.category_ids, strict=True))
    if set(wanted) <= set(known):
        return {category: category for category in data.category_ids}
    id_of = dict(wanted)
    if set(id_of) <= set(model.names) and len(id_of) == len(wanted):
        return {category: id_of[name] for name, category in known if name in id_of}
    missing = [name for name in data.names if name not in model.names]
    raise ConfigError(
        f"annotations: classes {_some(missing or data.names)} are not classes of the model, which knows "
        f"{_some(model.names)}; evaluate it on data of the classes that it was trained on"
    )


def translate_results(entries: list[dict[str, Any]], category_of: dict[int, int]) -> list[dict[str, Any]]:
    """Entries of a COCO results file with the data's category ids; those of classes that it lacks are left out."""
    return [
        {**entry, "category_id": category_of[entry["category_id"]]}
        for entry in entries
        if entry["category_id"] in category_of
    ]


@dataclass(frozen=True, slots=True)
class ReturnRows:
    """A sink that sends the rows to the driver."""

    def __call__(self, first: int, rows: pa.Table) -> pa.Table:
        """Pass the block on."""
        return rows


def _detect(config: EvaluateConfig, index: CocoIndex, on_progress: Progress | None) -> Iterator[pa.Table]:
    images = sorted(index.images, key=lambda image: (image.file_name, image.id))
    manifest = Manifest.of(locate(config.images).uri, [i.file_name for i in images], [i.id for i in images])
    work = Work(config=config, score_threshold=0.0, root=manifest.root, fingerprint="", sink=ReturnRows())
    done = 0
    with ray_session() as session, closing(stream(manifest, work, session)) as blocks:
        for rows in blocks:
            _require_sound(rows)
            done += rows.num_rows
            if on_progress is not None:
                on_progress(done, len(manifest))
            yield rows
    assert done == len(manifest), f"{done} rows for {len(manifest)} images"


def _require_sound(rows: pa.Table) -> None:
    broken = rows.filter(pc.is_valid(rows.column("error"))).to_pylist()
    if broken:
        shown = "; ".join(f"{row['uri']}: {row['error']['message']}" for row in broken[:_SHOWN])
        raise ImageError(
            f"images: {len(broken)} of a block of {rows.num_rows} cannot be used: {shown}; mend them, or take them out "
            "of the annotations"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
