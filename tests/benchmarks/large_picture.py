"""A large picture of small shapes whose boxes are known, for the benchmark of tiles.

Objects are stamped one by one by the shapes data set's own drawing, each on the part of the picture that it covers: an
owner map of the whole picture at four times its resolution, as `compose` keeps one, would take 768 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from PIL import Image

from sparse_detr.data.shapes import ShapesConfig
from sparse_detr.data.shapes_drawing import SUPERSAMPLING, clutter, finish, paint, stamp, texture
from sparse_detr.records import Classes, Detections

LOOK = ShapesConfig()
CLASSES = Classes(names=LOOK.classes, category_ids=tuple(range(1, len(LOOK.classes) + 1)))
ENLARGED = 8
"""Times that the background is enlarged: a tile of 1024 pixels then has that of a training picture of 128."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LargePicture:
    """Pixels and objects."""

    pixels: UInt8[np.ndarray, "H W 3"]
    boxes: Float64[np.ndarray, "N 4"]
    """xyxy, pixels: the extent of what is visible."""
    labels: Int64[np.ndarray, " N"]
    """Index into `LOOK.classes`."""

    @property
    def large(self) -> Bool[np.ndarray, " N"]:
        """Objects of a tenth of the picture's height, or more."""
        longer: np.ndarray = (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1)
        return longer >= 0.1 * len(self.pixels)

    def truth(self) -> Detections:
        """The objects, as if they had been found."""
        return Detections(
            scores=torch.ones(len(self.boxes)),
            labels=torch.from_numpy(self.labels),
            boxes=torch.from_numpy(self.boxes).float(),
        )


def draw_large_picture(height: int, width: int, sides: Float64[np.ndarray, " N"], seed: int = 0) -> LargePicture:
    """Draw objects at places by chance, the first at the bottom, none hidden by more than half.

    Args:
        sides: the longer side of each object, pixels.
    """
    rng = np.random.default_rng(seed)
    picture = _background(height, width, rng)
    owner = np.full((height, width), -1, np.int32)
    areas: list[int] = []
    labels = rng.integers(len(LOOK.classes), size=len(sides))
    for number, (side, label) in enumerate(zip(sides, labels, strict=True)):
        while not (area := _put(picture, owner, areas, number, LOOK.classes[label], float(side), rng)):
            pass
        areas.append(area)
    boxes = np.stack([_extent(owner == number) for number in range(len(sides))])
    pixels = np.asarray(finish(picture, LOOK.noise, rng))
    return LargePicture(pixels=pixels, boxes=boxes, labels=labels)


def _background(height: int, width: int, rng: np.random.Generator) -> Float32[np.ndarray, "H W 3"]:
    small = texture(rng, height // ENLARGED, width // ENLARGED)
    return np.asarray(clutter(small, 40, rng).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def _put(picture: np.ndarray, owner: np.ndarray, areas: list[int], number: int, name: str, side: float,
         rng: np.random.Generator) -> int:  # fmt: skip
    """Stamp an object at a place by chance; its pixels, or 0 where it would hide another one."""
    patch = int(1.5 * side) + 4
    placed = stamp(name, (patch / 2, patch / 2), side, patch, rng, LOOK.lean)
    y, x = (int(rng.integers(length - patch)) for length in owner.shape)
    window = slice(y, y + patch), slice(x, x + patch)
    small = np.zeros((patch * SUPERSAMPLING,) * 2, np.uint8)
    small[placed.region] = placed.mask
    covered = np.asarray(Image.fromarray((small > 0).astype(np.uint8) * 255).reduce(SUPERSAMPLING)) > 127
    hit, lost = np.unique(owner[window][covered], return_counts=True)
    for other, pixels in zip(hit, lost, strict=True):
        if other >= 0 and pixels and np.count_nonzero(owner == other) - pixels < LOOK.min_visible * areas[other]:
            return 0
    owner[window][covered] = number
    picture[window] = paint(picture[window], small, [placed], rng, LOOK.plain)
    return int(covered.sum())


def _extent(mask: np.ndarray) -> Float64[np.ndarray, " 4"]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def annotations(picture: LargePicture, name: str = "picture.jpg") -> dict[str, list[dict[str, object]]]:
    """The picture in COCO form."""
    rows = zip(xywh(picture.boxes).tolist(), picture.labels.tolist(), strict=True)
    return {
        "images": [{"id": 1, "file_name": name, "height": picture.pixels.shape[0], "width": picture.pixels.shape[1]}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": label + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (box, label) in enumerate(rows, start=1)
        ],
        "categories": [{"id": i, "name": kind} for i, kind in enumerate(CLASSES.names, start=1)],
    }


def xywh(boxes: Float64[np.ndarray, "N 4"]) -> Float64[np.ndarray, "N 4"]:
    """Corners to corner and size, as COCO has them."""
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
