"""Detections of a large picture held against its objects, for the benchmark of tiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from large_picture import CLASSES, LargePicture, annotations, xywh
from pycocotools import mask

from sparse_detr.evaluation.coco_ap import coco_results, evaluate_coco
from sparse_detr.records import Detections

IOU = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Detections of a picture, best first, and the view that each comes from."""

    detections: Detections
    views: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, merged: Detections | None, seen: Sequence[Detections]) -> Found:
        """The merged detections, or all that the views gave."""
        boxes, scores, labels = (
            torch.cat([getattr(view, name) for view in seen]) for name in ("boxes", "scores", "labels")
        )
        views = np.repeat(np.arange(len(seen)), [len(view.scores) for view in seen])
        order = scores.argsort(descending=True)
        if merged is None:
            merged = Detections(scores=scores[order], labels=labels[order], boxes=boxes[order])
        of_row = {(*box, label): view for box, label, view in zip(boxes.tolist(), labels.tolist(), views, strict=True)}
        rows = zip(merged.boxes.tolist(), merged.labels.tolist(), strict=True)
        return cls(detections=merged, views=np.array([of_row[*box, label] for box, label in rows], np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Detections of a picture held against its objects, the best detection first."""

    met: Bool[np.ndarray, " N"]
    """Objects that a detection of their class meets with an IoU of at least 0.5, each detection one object."""
    again: int
    """Further detections of the same object by the same view: the model itself gave two."""
    twice: int
    """Further detections of the same object by another view: merging left two."""
    parts: int
    """Detections that meet no object of their class, and of which more than half is in one."""
    confused: int
    """Others that meet an object of another class."""


def tally(found: Found, picture: LargePicture) -> Tally:
    """Hold the detections against the objects."""
    boxes, truth = xywh(found.detections.boxes.double().numpy()), xywh(picture.boxes)
    by: list[list[int]] = [[] for _ in truth]
    counts = Counter[str]()
    # Against a crowd, pycocotools' IoU is the intersection over the detection's own area.
    iou, inside = (mask.iou(boxes, truth, [crowd] * len(truth)) if len(boxes) else [] for crowd in (0, 1))
    rows = zip(found.detections.labels.tolist(), found.views.tolist(), iou, inside, strict=True)
    for label, view, overlap, share in rows:
        same = picture.labels == label
        free = overlap * (same & [not views for views in by])
        if (overlap * same).max() >= IOU:
            views = by[np.argmax(free if free.max() >= IOU else overlap * same)]
            if views:
                counts["again" if view in views else "twice"] += 1
            views.append(view)
        elif (share * same).max() > IOU:
            counts["parts"] += 1
        elif overlap.max() >= IOU:
            counts["confused"] += 1
    kinds = {kind: counts[kind] for kind in ("again", "twice", "parts", "confused")}
    return Tally(met=np.array([bool(views) for views in by]), **kinds)


def average_precision(found: Found, picture: LargePicture) -> float:
    """AP50 by COCO's evaluation, which takes at most 100 boxes of a class."""
    return evaluate_coco(annotations(picture), coco_results(1, found.detections, CLASSES)).ap50
