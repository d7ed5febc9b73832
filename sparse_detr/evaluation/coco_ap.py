"""COCO average precision of boxes, by pycocotools without its prints."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparse_detr.errors import AnnotationError, ConfigError
from sparse_detr.records import Classes, Detections


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoMetrics:
    """COCO's twelve numbers, from 0 to 1; -1, as COCO has it, where the ground truth holds no such object."""

    ap: float
    """Average precision, mean over IoU 0.50 to 0.95 and over classes."""
    ap50: float
    ap75: float
    ap_small: float
    """Objects below 32 x 32 pixels."""
    ap_medium: float
    """Objects from 32 x 32 to 96 x 96 pixels."""
    ap_large: float
    """Objects above 96 x 96 pixels."""
    ar1: float
    """Average recall with one detection an image."""
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float]
    """`ap` of every class that occurs in the ground truth, by name."""

    def summary(self) -> dict[str, float]:
        """The twelve numbers by name, in COCO's order."""
        return {name: getattr(self, name) for name in _TWELVE}


_TWELVE = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
           "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip


def coco_results(image_id: int, detections: Detections, classes: Classes) -> list[dict[str, Any]]:
    """One image's detections in COCO's result form: category ids, and boxes as x, y, width, height in pixels.

    Raises:
        ConfigError: a label is none of `classes`.
    """
    labels = detections.labels.tolist()
    if labels and max(labels) >= len(classes):
        raise ConfigError(
            f"detections.labels: {max(labels)}, but there are {len(classes)} classes; use the classes of the model"
        )
    return [
        coco_entry(image_id, classes.category_ids[label], box, score)
        for score, label, box in zip(detections.scores.tolist(), labels, detections.boxes.tolist(), strict=True)
    ]


def coco_entry(image_id: int, category_id: int, box: Sequence[float], score: float) -> dict[str, Any]:
    """One entry of a COCO results file, of a box that is given as x0, y0, x1, y1 in pixels."""
    x0, y0, x1, y1 = box
    return {"image_id": image_id, "category_id": category_id, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}


def evaluate_coco(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> CocoMetrics:
    """Compare results with a ground truth in COCO form (images, annotations, categories).

    Without any result every number is 0 (or -1 where there is nothing to find). Results of categories that the
    ground truth does not declare count for nothing, as in COCO's own evaluation. The arguments stay as they are.

    Raises:
        AnnotationError: a result is of an image that the ground truth does not have.
    """
    known = {image["id"] for image in ground_truth["images"]}
    strange = sorted({result["image_id"] for result in results} - known)
    if strange:
        raise AnnotationError(
            f"results: {len(strange)} image ids are not in the ground truth, first {strange[:3]}; "
            "evaluate against the annotations that the images came from"
        )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(ground_truth, ground_truth["annotations"]), _index(ground_truth, results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = dict(zip(_TWELVE, map(float, evaluation.stats), strict=True))
    return CocoMetrics(**numbers, per_class=_per_class(evaluation, ground_truth["categories"]))


def _index(ground_truth: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> COCO:
    # Ids count from 1: pycocotools marks a match by the annotation's id and takes 0 for "no match".
    annotations = [
        {"area": box["bbox"][2] * box["bbox"][3], "iscrowd": 0, **box, "id": number}
        for number, box in enumerate(boxes, start=1)
    ]
    coco = COCO()
    coco.dataset = {
        "images": list(ground_truth["images"]),
        "categories": list(ground_truth["categories"]),
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _per_class(evaluation: COCOeval, categories: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    # precision is [IoU, recall, class, area range, detections]; -1 where a class has no objects.
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, -1]
    names = {category["id"]: category["name"] for category in categories}
    uses = Counter(names.values())
    found = {}
    for position, category_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, position]
        if (values > -1).any():
            name = names[category_id]
            found[name if uses[name] == 1 else f"{name} ({category_id})"] = float(values[values > -1].mean())
    return found
