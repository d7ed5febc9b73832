"""Evaluation on the validation images, every rank with its share: COCO's numbers, and Corr."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sparse_detr.evaluation.attention_overlap import OverlapMean, attention_overlap
from sparse_detr.evaluation.coco_ap import CocoMetrics, coco_results, evaluate_coco
from sparse_detr.evaluation.mode import evaluating
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.records import Batch, Classes


def detect(
    model: nn.Module,
    batches: Iterable[Batch],
    classes: Classes,
    device: torch.device | str,
    overlap: OverlapMean | None = None,
) -> list[dict[str, Any]]:
    """Detections of all images in the batches, as entries of a COCO results file.

    Args:
        overlap: takes in how much of the decoder's attention falls on kept tokens; without it the model need not
            return its attention.
    """
    results: list[dict[str, Any]] = []
    with evaluating(model):
        for batch in batches:
            output = model(batch.images.to(device), with_auxiliary=overlap is not None)
            if overlap is not None:
                overlap.add(attention_overlap(output))
            found = postprocess(output, batch.original_sizes)
            for image_id, detections in zip(batch.image_ids, found, strict=True):
                results += coco_results(image_id, detections, classes)
    return results


def validation_metrics(
    results: list[dict[str, Any]], ground_truth: dict[str, Any], *, world_size: int = 1
) -> CocoMetrics:
    """COCO's numbers from the results of all ranks; every rank must call it and gets the same answer."""
    if world_size == 1:
        return evaluate_coco(ground_truth, results)
    gathered: list[list[dict[str, Any]]] = [[] for _ in range(world_size)]
    dist.all_gather_object(gathered, results)
    answer: list[CocoMetrics | None] = [None]
    if dist.get_rank() == 0:
        answer = [evaluate_coco(ground_truth, [entry for results_of_rank in gathered for entry in results_of_rank])]
    dist.broadcast_object_list(answer, src=0)
    metrics = answer[0]
    assert metrics is not None
    return metrics


def validation_overlap(overlap: OverlapMean, *, world_size: int = 1) -> dict[str, float]:
    """`corr`, `corr_0`, ... over the images of all ranks; every rank must call it and gets the same answer."""
    if world_size == 1:
        return overlap.summary()
    gathered = [OverlapMean() for _ in range(world_size)]
    dist.all_gather_object(gathered, overlap)
    whole = OverlapMean()
    whole.merge(gathered)
    return whole.summary()


def flat_metrics(metrics: CocoMetrics) -> dict[str, float]:
    """COCO's twelve numbers by name; those that the data cannot tell (no object of that size) are left out."""
    return {name: value for name, value in metrics.summary().items() if value >= 0}
