"""Tiled detection: small objects in large images, seen one part of the image at a time.

A 6000 x 4000 image that is resized to 1333 pixels shows an object of 20 pixels as one of 4, which no detector finds. A
tile of 1024 pixels keeps its 20. The image passes the model as a whole too, for objects larger than a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_detr.boxes import area
from sparse_detr.errors import require
from sparse_detr.records import Detections

SAME = 0.5
"""Overlap above which two boxes of different views are one object."""
BORDER = 0.02
"""A box is cut where it comes nearer to an inner border of its tile than this share of the tile's side: a model ends
the box of a cut object a little before the border. Between 0.01 and 0.04 it makes no difference."""

Tile = tuple[int, int, int, int]
"""x, y, width, height, in pixels of the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """Square tiles over an image."""

    side: int
    """Pixels of the image, before it is resized."""
    overlap: float = 0.2
    """Share of a tile's side that neighbours have in common: an object smaller than that is whole in one of them."""

    def __post_init__(self) -> None:
        require(self.side >= 32, f"tile: {self.side}; give at least 32 pixels")
        require(0.0 <= self.overlap < 1.0, f"overlap: {self.overlap}; give a share in [0, 1)")

    def cut(self, size: tuple[int, int]) -> Iterator[Tile]:
        """(x, y, width, height) of the tiles of an image of (height, width), row by row; none where one would do."""
        height, width = size
        if height <= self.side and width <= self.side:
            return
        for y in self._starts(height):
            for x in self._starts(width):
                yield x, y, min(self.side, width), min(self.side, height)

    def _starts(self, length: int) -> list[int]:
        """Starts of tiles along an axis: evenly spread, the last one ends with the image."""
        if length <= self.side:
            return [0]
        step = max(1, int(self.side * (1 - self.overlap)))
        count = -(-(length - self.side) // step) + 1
        return [round(i * (length - self.side) / (count - 1)) for i in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What was found in an image, or in a tile of it."""

    detections: Detections
    """Boxes in pixels of the whole image."""
    tile: Tile | None = None
    """None for the whole image."""


def merge_views(views: Sequence[View], size: tuple[int, int], limit: int) -> Detections:
    """Detections of the whole image and its tiles as one set, the best `limit` of them, best first.

    Non-maximum suppression between different views; boxes of one view never suppress each other, for the model has
    decided about them already. Boxes that show their object whole come first, by score. Those that an inner border of
    their tile cuts come after them whatever their score, for half an object can look more certain than the whole one.

    A whole box goes if one of its class before it has an IoU above SAME with it. A cut one goes if more than SAME of it
    is covered by one of its class before it, as the IoU of a part with its object may be anything; or, whatever the
    class, if it is what its tile shows of a whole box (their IoU within the tile is above SAME), for a part is easily
    taken for another thing.

    Args:
        views: of one image.
        size: (height, width) of the image, pixels.
        limit: at most so many are kept.
    """
    scores = torch.cat([view.detections.scores for view in views])
    labels = torch.cat([view.detections.labels for view in views])
    boxes = torch.cat([view.detections.boxes for view in views])
    origin = torch.repeat_interleave(torch.tensor([len(view.detections.scores) for view in views]))
    regions = boxes.new_tensor([_region(view.tile, size) for view in views])[origin]
    cut = _cut(boxes, regions, size)
    rest = torch.argsort(scores, descending=True, stable=True)
    rest = torch.cat((rest[~cut[rest]], rest[cut[rest]]))
    kept: list[int] = []
    counts = {False: 0, True: 0}
    while len(rest):
        best, rest = int(rest[0]), rest[1:]
        kept.append(best)
        box, others = boxes[best], boxes[rest]
        overlap = torch.where(cut[rest], _shared(box, others) / area(others), _iou(box, others))
        gone = (labels[rest] == labels[best]) & (overlap > SAME)
        if not cut[best]:
            shown = box.clamp(regions[rest][:, [0, 1, 0, 1]], regions[rest][:, [2, 3, 2, 3]])
            gone |= cut[rest] & (_iou(shown, others) > SAME)
        rest = rest[~gone | (origin[rest] == origin[best])]
        counts[bool(cut[best])] += 1
        if counts[bool(cut[best])] == limit:  # what is left of its kind is worse than all of these
            rest = rest[cut[rest] != cut[best]]
    chosen = torch.tensor(kept, dtype=torch.int64)
    chosen = chosen[torch.argsort(scores[chosen], descending=True, stable=True)][:limit]
    return Detections(scores=scores[chosen], labels=labels[chosen], boxes=boxes[chosen])


def _region(tile: Tile | None, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of the image that a view shows, xyxy."""
    x, y, width, height = tile or (0, 0, size[1], size[0])
    return x, y, x + width, y + height


def _cut(boxes: Float[Tensor, "N 4"], regions: Float[Tensor, "N 4"], size: tuple[int, int]) -> Bool[Tensor, " N"]:
    """Which boxes reach a border of their view that is none of the image's: more of the object may be beyond."""
    low, high = regions[:, :2], regions[:, 2:]
    near = BORDER * (high - low).amax(dim=1, keepdim=True)
    before, after = low > 0, high < high.new_tensor([size[1], size[0]])
    return ((boxes[:, :2] < low + near) & before | (boxes[:, 2:] > high - near) & after).any(dim=1)


def _shared(a: Float[Tensor, "*n 4"], b: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    """Area of the intersection of xyxy boxes."""
    corner = torch.minimum(a[..., 2:], b[:, 2:]) - torch.maximum(a[..., :2], b[:, :2])
    return corner.clamp(min=0).prod(dim=1)


def _iou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "N 4"]) -> Float[Tensor, " N"]:
    shared = _shared(a, b)
    return shared / (area(a) + area(b) - shared)
