"""Evaluation on the validation images as `sparse-detr evaluate` does it, every rank with its share of the blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.detect.config import IMAGES_PER_BLOCK, PredictorConfig
from pipelines.detect.images import ImageRef, ImageResult, ReadyImage
from pipelines.detect.predictor import Predictor
from pipelines.detect.prefetch import Block
from pipelines.train.engine.ranks import Ranks
from sparse_detr.data.coco_index import CocoIndex
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ImageError
from sparse_detr.evaluation.attention_overlap import OverlapMean, attention_overlap
from sparse_detr.evaluation.coco_ap import CocoMetrics, coco_results, evaluate_coco
from sparse_detr.evaluation.mode import evaluating
from sparse_detr.records import ImageSize
from sparse_detr.storage.location import Location

CLASS_AP = "ap/"
"""Before a class's name, that of its AP among the metrics of an epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationImages:
    """Images to detect objects in, in the order and the blocks of `evaluate`."""

    index: CocoIndex
    root: Location
    size: ImageSize
    """They are resized to it."""

    def blocks(self, rank: int, world_size: int) -> Iterator[Block]:
        """Every `world_size`th block: whole ones, since a batch holds images of one block, and another batch would
        round otherwise."""
        refs = [ImageRef(index=row, key=image.file_name) for row, image in enumerate(self.index.in_order())]
        for first in range(rank * IMAGES_PER_BLOCK, len(refs), world_size * IMAGES_PER_BLOCK):
            yield Block(images=refs[first : first + IMAGES_PER_BLOCK])


class _Predictor(Predictor):
    """Also takes in how much of the decoder's attention falls on kept tokens, in the same pass."""

    def __init__(self, model: SparseDetr, size: ImageSize, device: torch.device, overlap: OverlapMean | None) -> None:
        config = PredictorConfig(short_side=size.short_side, max_side=size.max_side)
        super().__init__(model, config, device=device)
        self._overlap = overlap

    @torch.inference_mode()
    def run(self, images: Sequence[ReadyImage]) -> list[ImageResult]:
        """Detections of images of one shape."""
        output = self.model(self.batch(images), with_auxiliary=self._overlap is not None)
        if self._overlap is not None:
            self._overlap.add(attention_overlap(output))
        return self.results(images, output)


def validate(
    model: SparseDetr,
    images: ValidationImages,
    device: torch.device,
    ranks: Ranks,
    on_block: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """COCO's numbers, and for sparse models `corr`, the share of the decoder's attention that falls on kept tokens,
    over all levels and (`corr_0`, ...) on each; the same on every rank, and each must call it.

    In float32 whatever the training's precision, without padding, in batches as in `evaluate`: so these are the numbers
    that `evaluate` gives of the saved model, to the last digit. `on_block` is called after every block of images.

    Raises:
        ImageError: an image is broken; names it.
        StoreUnavailableError: the store was away for longer than is waited for it.
    """
    started = time.perf_counter()
    overlap = OverlapMean() if model.config.sparse else None
    results = detect(model, images, device, ranks, overlap, on_block)
    metrics = flat_metrics(coco_metrics(results, images.index.ground_truth(), ranks))
    if overlap is not None:
        whole = OverlapMean()
        whole.merge(ranks.gather_objects(overlap))
        metrics |= whole.summary()
    return metrics | {"evaluation_seconds": time.perf_counter() - started}


def detect(
    model: SparseDetr,
    images: ValidationImages,
    device: torch.device,
    ranks: Ranks,
    overlap: OverlapMean | None = None,
    on_block: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Detections of this rank's images, as entries of a COCO results file; errors as `validate`.

    Args:
        model: in any mode, which comes back afterwards.
        images: of all ranks.
        device: where the model is.
        ranks: this one takes its share.
        overlap: takes in how much of the decoder's attention falls on kept tokens.
        on_block: called after every block of images.
    """
    results: list[dict[str, Any]] = []
    order = images.index.in_order()
    with evaluating(model):
        predictor = _Predictor(model, images.size, device, overlap)
        for block in predictor.detect_blocks(images.root.child, images.blocks(ranks.rank, ranks.world_size)):
            on_block()
            for found in block:
                if found.detections is None:
                    why = "" if found.failure is None else found.failure.message
                    raise ImageError(f"data.val_images: {found.key} cannot be used: {why}; fix it, or take it out")
                results += coco_results(order[found.index].id, found.detections, images.index.classes)
    return results


def coco_metrics(results: list[dict[str, Any]], ground_truth: dict[str, Any], ranks: Ranks) -> CocoMetrics:
    """COCO's numbers from the results of all ranks; every rank must call it and gets the same answer."""
    gathered = ranks.gather_objects(results)
    metrics = None
    if ranks.rank == 0:
        metrics = evaluate_coco(ground_truth, [entry for results_of_rank in gathered for entry in results_of_rank])
    metrics = ranks.first(metrics)
    assert metrics is not None
    return metrics


def flat_metrics(metrics: CocoMetrics) -> dict[str, float]:
    """COCO's twelve numbers by name, and the AP of each class as `ap/<class>`; those that the data cannot tell (no
    object of that size, or class) are left out."""
    found = {name: value for name, value in metrics.summary().items() if value >= 0}
    return found | {f"{CLASS_AP}{name}": value for name, value in metrics.per_class.items()}
