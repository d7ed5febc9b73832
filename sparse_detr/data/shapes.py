"""The *shapes* data set: generated pictures with exact boxes, to train and test on without any download.

Five kinds of shapes, plain or textured, with or without a rim, leaning, small to large, overlapping and cut by the
border, on textured backgrounds with clutter. The same seed gives the same bytes (with the same numpy and Pillow).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparse_detr.data.coco_index import write_coco
from sparse_detr.data.shapes_drawing import SHAPE_NAMES, SUPERSAMPLING, Stamp, clutter, finish, paint, stamp, texture
from sparse_detr.errors import ConfigError, require
from sparse_detr.storage.location import Location

_UPLOADS = 8
_TRIALS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesConfig:
    """Look of the pictures of the shapes data set."""

    images: int = 2000
    """Number of pictures that `generate_shapes` makes."""
    seed: int = 0
    """Picture i depends on the seed and i alone."""
    size: int = 128
    """Height and width of a picture, pixels."""
    classes: tuple[str, ...] = ("circle", "square", "star", "triangle")
    """Kinds of shapes, out of circle, ring, square, star, triangle; category ids count from 1 in this order."""
    min_objects: int = 1
    """Fewest objects in a picture."""
    max_objects: int = 5
    """Most objects in a picture; fewer where they find no place."""
    min_side: float = 0.1
    """Shortest long side of an object, as a share of the picture's side."""
    max_side: float = 0.6
    """Longest long side of an object, as a share of the picture's side."""
    min_visible: float = 0.5
    """Least share of every object that others and the border leave visible; more hidden ones are not drawn."""
    lean: float = 25.0
    """Largest turn of an object from the upright, either way, degrees; 180 turns it any way."""
    plain: float = 0.5
    """Probability that an object has one colour instead of a texture."""
    clutter: int = 4
    """Most lines, arcs and specks that belong to no class."""
    noise: float = 8.0
    """Largest standard deviation of the sensor noise, of 255."""
    jpeg_quality: int = 90
    """Quality of the JPEG files, 1..95."""

    def __post_init__(self) -> None:
        require(self.images >= 0, _wrong("images", self.images, "at least 0"))
        require(self.seed >= 0, _wrong("seed", self.seed, "at least 0"))
        require(32 <= self.size <= 4096, _wrong("size", self.size, "between 32 and 4096"))
        require(len(self.classes) > 0, _wrong("classes", self.classes, "at least one shape"))
        known = set(self.classes) <= set(SHAPE_NAMES) and len(set(self.classes)) == len(self.classes)
        require(known, _wrong("classes", self.classes, f"different ones out of {', '.join(SHAPE_NAMES)}"))
        require(self.min_objects >= 1, _wrong("min_objects", self.min_objects, "at least 1"))
        require(
            self.min_objects <= self.max_objects <= 100, _wrong("max_objects", self.max_objects, "min_objects to 100")
        )
        require(self.min_side >= 0.05, _wrong("min_side", self.min_side, "at least 0.05"))
        require(self.min_side <= self.max_side <= 1, _wrong("max_side", self.max_side, "between min_side and 1"))
        require(0.1 <= self.min_visible <= 1, _wrong("min_visible", self.min_visible, "between 0.1 and 1"))
        require(0 <= self.lean <= 180, _wrong("lean", self.lean, "between 0 and 180 degrees"))
        require(0 <= self.plain <= 1, _wrong("plain", self.plain, "between 0 and 1"))
        require(self.clutter >= 0, _wrong("clutter", self.clutter, "at least 0"))
        require(0 <= self.noise <= 100, _wrong("noise", self.noise, "between 0 and 100"))
        require(1 <= self.jpeg_quality <= 95, _wrong("jpeg_quality", self.jpeg_quality, "between 1 and 95"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeObject:
    """One object of a picture."""

    label: int
    """Index into `ShapesConfig.classes`."""
    box: tuple[float, float, float, float]
    """xyxy, pixels: the extent of its visible part."""
    area: float
    """Visible square pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitUris:
    """Annotations and images of one split of a data set."""

    annotations: str
    images: str


def generate_shapes(config: ShapesConfig) -> Iterator[tuple[str, bytes, tuple[ShapeObject, ...]]]:
    """Make the pictures of a data set, one after the other.

    Yields:
        File name, JPEG bytes and objects of each picture.
    """
    for index in range(config.images):
        rng = np.random.default_rng((config.seed, index))
        data, objects = _picture(config, rng)
        yield f"{index:06d}.jpg", data, objects


def write_shapes(
    destination: Location,
    config: ShapesConfig,
    splits: Mapping[str, int],
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, SplitUris]:
    """Write `<split>.json` in COCO form and `<split>/*.jpg` below the destination.

    Args:
        destination: a folder in any store.
        config: its `images` is not used; every split has pictures of its own.
        splits: pictures of each split, as in `{"train": 2000, "val": 300}`.
        on_progress: called with pictures done and pictures in all.

    Raises:
        ConfigError: no split, or one without pictures.
        StorageError: the destination cannot be written.
    """
    if not splits or min(splits.values()) < 1:
        raise ConfigError(f"splits: {dict(splits)}; give each split at least one picture")
    total, done = sum(splits.values()), 0
    uris = {}
    for split, images in splits.items():
        own = replace(config, images=images, seed=zlib.crc32(f"{config.seed} {split}".encode()))
        rows: list[tuple[str, tuple[ShapeObject, ...]]] = []
        folder, annotations = destination.child(split), destination.child(f"{split}.json")
        # Removed first and written last: where the annotations are, all their pictures are.
        annotations.delete_file()
        for name, objects in _uploaded(folder, own):
            rows.append((name, objects))
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        write_coco(annotations, shapes_coco(own, rows))
        uris[split] = SplitUris(annotations=annotations.uri, images=folder.uri)
    return uris


def shapes_coco(config: ShapesConfig, rows: list[tuple[str, tuple[ShapeObject, ...]]]) -> dict[str, Any]:
    """Pictures (file name, objects) in COCO form; image ids count from 1."""
    annotations: list[dict[str, Any]] = []
    for image_id, (_, objects) in enumerate(rows, start=1):
        for item in objects:
            x0, y0, x1, y1 = item.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": item.label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": item.area,
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": "generated shapes", "seed": config.seed},
        "images": [
            {"id": image_id, "file_name": name, "height": config.size, "width": config.size}
            for image_id, (name, _) in enumerate(rows, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(config.classes, start=1)],
    }


def compose(config: ShapesConfig, rng: np.random.Generator) -> tuple[np.ndarray, list[Stamp], tuple[ShapeObject, ...]]:
    """Place the objects of one picture: owner map (see `paint`), stamps and what is visible of each."""
    owner = np.zeros((config.size * SUPERSAMPLING,) * 2, np.uint8)
    stamps: list[Stamp] = []
    labels: list[int] = []
    wanted = int(rng.integers(config.min_objects, config.max_objects + 1))
    for _ in range(wanted * _TRIALS):
        if len(stamps) == wanted:
            break
        label = int(rng.integers(len(config.classes)))
        placed = _placed(config, label, rng)
        if placed is not None and _leaves_visible(owner, placed, stamps, config.min_visible):
            own = owner[placed.region]
            np.copyto(own, placed.mask + np.uint8(2 * len(stamps)), where=placed.mask > 0)
            stamps.append(placed)
            labels.append(label)
    objects = tuple(
        _seen(owner, i, placed, label) for i, (placed, label) in enumerate(zip(stamps, labels, strict=True))
    )
    return owner, stamps, objects


def _picture(config: ShapesConfig, rng: np.random.Generator) -> tuple[bytes, tuple[ShapeObject, ...]]:
    owner, stamps, objects = compose(config, rng)
    scene = texture(rng, config.size, config.size)
    background = np.asarray(clutter(scene, int(rng.integers(config.clutter + 1)), rng), dtype=np.float32)
    stream = io.BytesIO()
    painted = paint(background, owner, stamps, rng, config.plain)
    finish(painted, config.noise, rng).save(stream, "JPEG", quality=config.jpeg_quality)
    return stream.getvalue(), objects


def _placed(config: ShapesConfig, label: int, rng: np.random.Generator) -> Stamp | None:
    # Evenly over the logarithm: as many small objects as large ones.
    side = config.size * float(np.exp(rng.uniform(np.log(config.min_side), np.log(config.max_side))))
    x, y = (float(value) for value in rng.uniform(0.3 * side, config.size - 0.3 * side, 2))
    return stamp(config.classes[label], (x, y), side, config.size, rng, config.lean)


def _leaves_visible(owner: np.ndarray, new: Stamp, others: list[Stamp], least: float) -> bool:
    covered = new.mask > 0
    if np.count_nonzero(covered) < least * new.full_area:
        return False
    hit = np.bincount(owner[new.region][covered], minlength=2 * len(others) + 1)
    for index, other in enumerate(others):
        lost = int(hit[2 * index + 1] + hit[2 * index + 2])
        if lost and _visible(owner, index, other).sum() - lost < least * other.full_area:
            return False
    return True


def _visible(owner: np.ndarray, index: int, placed: Stamp) -> np.ndarray:
    own = owner[placed.region]
    visible: np.ndarray = (own == 2 * index + 1) | (own == 2 * index + 2)
    return visible


def _seen(owner: np.ndarray, index: int, placed: Stamp, label: int) -> ShapeObject:
    visible = _visible(owner, index, placed)
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    y0, y1 = (placed.top + float(v) / SUPERSAMPLING for v in (rows[0], rows[-1] + 1))
    x0, x1 = (placed.left + float(v) / SUPERSAMPLING for v in (columns[0], columns[-1] + 1))
    return ShapeObject(label=label, box=(x0, y0, x1, y1), area=float(visible.sum()) / SUPERSAMPLING**2)


def _uploaded(folder: Location, config: ShapesConfig) -> Iterator[tuple[str, tuple[ShapeObject, ...]]]:
    """Pictures in their order, each when it is stored; few wait in memory."""
    with ThreadPoolExecutor(_UPLOADS) as pool:
        waiting: list[tuple[Future[None], str, tuple[ShapeObject, ...]]] = []
        for name, data, objects in generate_shapes(config):
            waiting.append((pool.submit(folder.child(name).write_bytes, data), name, objects))
            if len(waiting) >= 4 * _UPLOADS:
                stored, first, seen = waiting.pop(0)
                stored.result()
                yield first, seen
        for stored, name, objects in waiting:
            stored.result()
            yield name, objects


def _wrong(name: str, value: object, right: str) -> str:
    return f"shapes.{name}: {value!r}; it must be {right}"
