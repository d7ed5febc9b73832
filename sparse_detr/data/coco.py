"""COCO annotations: read, checked, and given back for the COCO evaluation.

A file that is not what it claims to be is refused with the place and the remedy. A single bad box does not
stop the work: it is dropped, counted and listed in `CocoIndex.dropped`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from sparse_detr.data.coco_index import CocoImage, CocoIndex, DroppedBox, verify_images, write_coco
from sparse_detr.errors import AnnotationError
from sparse_detr.records import Classes
from sparse_detr.storage.location import Location, locate

__all__ = ["CocoImage", "CocoIndex", "DroppedBox", "index_coco", "read_coco", "verify_images", "write_coco"]

_SHOWN = 5
_LARGEST = 1e15
"""Beyond this a coordinate is as good as infinite: no image is so large."""


def read_coco(annotations_uri: str | Path, *, classes: Classes | None = None) -> CocoIndex:
    """Read a COCO instances file.

    Args:
        annotations_uri: the JSON file, in any store.
        classes: the label of each category id, where a model has already fixed it (its checkpoint's classes, or
            `coco_91_classes()` for the authors' models); without it labels count the file's categories by rising id.

    Returns:
        The index. Boxes that are not four finite numbers, have no width or height, or are outside of their image
        are in `dropped`; others are clipped to the image.

    Raises:
        AnnotationError: not JSON, a key is lacking or mistyped, an id is there twice or points to nothing, an image
            has no size, a category is not declared.
        StorageError: the file cannot be read.
    """
    location = locate(annotations_uri)
    return index_coco(_load_json(location), source=location.uri, classes=classes)


def index_coco(data: Mapping[str, Any], *, source: str, classes: Classes | None = None) -> CocoIndex:
    """The same as `read_coco` for a dict in memory; `source` names it in messages."""
    images = _records(data, "images", source)
    declared = _classes_of(_records(data, "categories", source), source)
    reader = _Reader(source=source, declared=declared, classes=classes or declared)
    for place, image in enumerate(images):
        reader.add_image(place, image)
    for place, annotation in enumerate(_records(data, "annotations", source)):
        reader.add_annotation(place, annotation)
    return CocoIndex(
        images=tuple(rows.finish() for rows in reader.images.values()),
        classes=reader.classes,
        dropped=tuple(reader.dropped),
        source=source,
    )


@dataclass(slots=True)
class _Rows:
    """The annotations of one image while the file is being read."""

    id: int
    file_name: str
    height: int
    width: int
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    annotation_ids: list[int] = field(default_factory=list)

    def finish(self) -> CocoImage:
        return CocoImage(
            id=self.id,
            file_name=self.file_name,
            height=self.height,
            width=self.width,
            boxes=np.array(self.boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.array(self.labels, dtype=np.int64),
            areas=np.array(self.areas, dtype=np.float64),
            crowd=np.array(self.crowd, dtype=np.bool_),
            annotation_ids=np.array(self.annotation_ids, dtype=np.int64),
        )


class _Reader:
    """Collects images and annotations; every refusal names the file and the place in it."""

    def __init__(self, *, source: str, declared: Classes, classes: Classes) -> None:
        self.source = source
        self.classes = classes
        self.images: dict[int, _Rows] = {}
        self.dropped: list[DroppedBox] = []
        self._declared = frozenset(declared.category_ids)
        self._labels = {category: label for label, category in enumerate(classes.category_ids)}
        self._annotation_ids: set[int] = set()

    def add_image(self, place: int, record: Mapping[str, Any]) -> None:
        where = f"{self.source}: images[{place}]"
        image_id = _integer(record, "id", where)
        if image_id in self.images:
            raise AnnotationError(f"{where}: id {image_id} is there twice; image ids must differ")
        name = _text(record, "file_name", where)
        if name.startswith("/") or ".." in name.split("/"):
            raise AnnotationError(f"{where}: file_name {name!r} leads out of the folder of images; give a relative one")
        height, width = (_integer(record, key, f"{where} ({name})") for key in ("height", "width"))
        if height < 1 or width < 1:
            raise AnnotationError(f"{where} ({name}): size {width}x{height}; width and height must be at least 1")
        self.images[image_id] = _Rows(id=image_id, file_name=name, height=height, width=width)

    def add_annotation(self, place: int, record: Mapping[str, Any]) -> None:
        where = f"{self.source}: annotations[{place}]"
        annotation_id = _integer(record, "id", where)
        if annotation_id in self._annotation_ids:
            raise AnnotationError(f"{where}: id {annotation_id} is there twice; annotation ids must differ")
        self._annotation_ids.add(annotation_id)
        image = self.images.get(_integer(record, "image_id", where))
        if image is None:
            raise AnnotationError(f"{where}: image_id {record['image_id']} is not among the images; add or remove it")
        label = self._label(_integer(record, "category_id", where), where)
        raw = _lookup(record, "bbox", where)
        box = _clipped(raw, image)
        if isinstance(box, str):
            shown = tuple(raw) if isinstance(raw, list) else (raw,)
            self.dropped.append(
                DroppedBox(file_name=image.file_name, annotation_id=annotation_id, box=shown, reason=box)
            )
            return
        image.boxes.append(box)
        image.labels.append(label)
        image.areas.append(_area(record.get("area"), box))
        image.crowd.append(record.get("iscrowd", 0) == 1)
        image.annotation_ids.append(annotation_id)

    def _label(self, category: int, where: str) -> int:
        if category not in self._declared:
            raise AnnotationError(
                f"{where}: category_id {category} is not declared; "
                f"add it to the categories, which are {_some(sorted(self._declared))}"
            )
        if category not in self._labels:
            raise AnnotationError(
                f"{where}: category_id {category} is not among the model's classes {_some(self.classes.category_ids)}; "
                "evaluate on the classes that the model was trained for"
            )
        return self._labels[category]


def _clipped(raw: object, image: _Rows) -> tuple[float, float, float, float] | str:
    """The xywh box as xyxy inside the image, or why it cannot be used."""
    if not isinstance(raw, list) or len(raw) != 4 or not all(_is_number(value) for value in raw):
        return "is not four numbers"
    if not all(-_LARGEST < value < _LARGEST for value in raw):
        return "is not finite"
    x, y, w, h = (float(value) for value in raw)
    if w <= 0 or h <= 0:
        return "has no area: width and height must be above 0"
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(image.width)), min(y + h, float(image.height))
    if x1 <= x0 or y1 <= y0:
        return f"is outside of the image of {image.width}x{image.height}"
    return x0, y0, x1, y1


def _area(stated: object, box: tuple[float, float, float, float]) -> float:
    if _is_number(stated) and 0 < stated < _LARGEST:
        return float(stated)
    return (box[2] - box[0]) * (box[3] - box[1])


def _classes_of(categories: Sequence[Mapping[str, Any]], source: str) -> Classes:
    names: dict[int, str] = {}
    for place, record in enumerate(categories):
        where = f"{source}: categories[{place}]"
        category = _integer(record, "id", where)
        if category in names:
            raise AnnotationError(f"{where}: id {category} is there twice; category ids must differ")
        names[category] = _text(record, "name", where)
    if not names:
        raise AnnotationError(f"{source}: declares no categories; give at least one")
    ids = tuple(sorted(names))
    return Classes(names=tuple(names[i] for i in ids), category_ids=ids)


def _load_json(location: Location) -> Mapping[str, Any]:
    raw = location.read_bytes()
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{location.uri}: not JSON ({error}); give a COCO instances file") from error
    if not isinstance(data, dict):
        raise AnnotationError(f"{location.uri}: holds a {type(data).__name__}; a COCO instances file holds an object")
    return data


def _records(data: Mapping[str, Any], key: str, source: str) -> Sequence[Mapping[str, Any]]:
    found = data.get(key)
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        state = "is lacking" if key not in data else "is not a list of objects"
        raise AnnotationError(
            f"{source}: key {key!r} {state}; a COCO instances file has images, annotations, categories"
        )
    return found


def _lookup(record: Mapping[str, Any], key: str, where: str) -> object:
    if key not in record:
        raise AnnotationError(f"{where}: key {key!r} is lacking; it has {sorted(record)}")
    return record[key]


def _integer(record: Mapping[str, Any], key: str, where: str) -> int:
    value = _lookup(record, key, where)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise AnnotationError(f"{where}: {key} is {value!r}; it must be an integer of 64 bits")
    return value


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = _lookup(record, key, where)
    if not isinstance(value, str) or not value:
        raise AnnotationError(f"{where}: {key} is {value!r}; it must be a text")
    return value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:_SHOWN])) + (f", ... ({len(ids)} in all)" if len(ids) > _SHOWN else "")
