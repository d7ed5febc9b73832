"""Tiled detection: small objects in large images, seen one part of the image at a time.

A 6000 x 4000 image that is resized to 1333 pixels shows an object of 20 pixels as one of 4, which no detector finds. A
tile of 1024 pixels keeps its 20. The image passes the model as a whole too, for objects larger than a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_detr.errors import require
from sparse_detr.records import Detections

MERGE_OVERLAP = 0.5
"""Two boxes of one class from different views are one object where their intersection covers more than this share of
the smaller one: a tile's border cuts an object, so its part has a small IoU with the whole, but is covered by it."""


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

    def cut(self, size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
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


def merge_views(views: Sequence[Detections], limit: int) -> Detections:
    """Detections of the whole image and its tiles as one set, the best `limit` of them, best first.

    Class-wise non-maximum suppression between different views: of two boxes of a class that overlap by more than
    MERGE_OVERLAP of the smaller, the one with the higher score stays. Boxes of one view never suppress each other, for
    the model has decided about them already.

    Args:
        views: boxes in pixels of the whole image.
        limit: at most so many are kept.
    """
    scores = torch.cat([view.scores for view in views])
    labels = torch.cat([view.labels for view in views])
    boxes = torch.cat([view.boxes for view in views])
    origin = torch.repeat_interleave(torch.arange(len(views)), torch.tensor([len(view.scores) for view in views]))
    order = torch.argsort(scores, descending=True, stable=True)
    kept: list[int] = []
    rest = order
    while len(rest) and len(kept) < limit:
        best = int(rest[0])
        kept.append(best)
        rest = rest[1:]
        same = (labels[rest] == labels[best]) & (origin[rest] != origin[best])
        covered = _overlap_of_smaller(boxes[best], boxes[rest]) > MERGE_OVERLAP
        rest = rest[~(same & covered)]
    chosen = torch.tensor(kept, dtype=torch.int64)
    return Detections(scores=scores[chosen], labels=labels[chosen], boxes=boxes[chosen])


def _overlap_of_smaller(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over the smaller area, of one box with each of the others, xyxy."""
    corner = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    intersection = corner.clamp(min=0).prod(dim=1)
    area = (box[2:] - box[:2]).prod()
    areas = (others[:, 2:] - others[:, :2]).prod(dim=1)
    return intersection / torch.minimum(area, areas).clamp(min=1e-9)
