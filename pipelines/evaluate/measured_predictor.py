"""A predictor with evaluation's instruments: several keep ratios by turns, the time of each, and Corr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.detect.config import DetectionConfig
from pipelines.detect.images import ImageResult, ReadyImage, Watch
from pipelines.detect.predictor import Predictor
from pipelines.evaluate.measures import MeasuredResult
from sparse_detr.detector import SparseDetr
from sparse_detr.evaluation.attention_overlap import attention_overlap
from sparse_detr.records import ImageBatch

KeepRatios = tuple[float | None, ...]
"""Keep ratios at which every image passes the model, one after the other; None is the model's own."""


class MeasuredPredictor(Predictor):
    """Passes every batch through the model at each keep ratio.

    The results of an image are together, in the order of the ratios; one alone for an image that failed.
    """

    def __init__(
        self,
        model: SparseDetr,
        config: DetectionConfig,
        *,
        keep_ratios: KeepRatios = (None,),
        device: torch.device | str = "cpu",
        overlap: bool = False,
        watch: Watch | None = None,
    ) -> None:
        """Take the model as it is loaded; every box is kept, whatever its score.

        Args:
            model: as it is loaded.
            config: see `Predictor`.
            keep_ratios: all different.
            device: `cpu` or `cuda`.
            overlap: also measure how much of the decoder's attention falls on kept tokens; every batch then passes
                the model twice, as a pass that returns its attention tells nothing of its speed.
            watch: see `Predictor`.
        """
        super().__init__(model, config, device=device, watch=watch)
        self._keep_ratios = keep_ratios
        self._overlap = overlap
        self._batches = 0

    @torch.inference_mode()
    def run(self, images: Sequence[ReadyImage]) -> list[ImageResult]:
        """Results at every ratio; each batch begins with another one, so what warms up or is cached favours none."""
        batch = self.batch(images)
        first = self._batches % len(self._keep_ratios)
        self._batches += 1
        turns = (*self._keep_ratios[first:], *self._keep_ratios[:first])
        found = {ratio: self._at_ratio(images, batch, ratio) for ratio in turns}
        return [result for ratio in self._keep_ratios for result in found[ratio]]

    def _at_ratio(self, images: Sequence[ReadyImage], batch: ImageBatch, ratio: float | None) -> list[MeasuredResult]:
        started = self._now()
        output = self.model(batch, keep_ratio=ratio)
        seconds = (self._now() - started) / len(images)
        results = self.results(images, output)
        height, width = batch.pixels.shape[2:]
        return [
            MeasuredResult(
                index=result.index,
                key=result.key,
                size=result.size,
                detections=result.detections,
                keep_ratio=ratio,
                seconds=seconds,
                input_size=(height, width),
                overlap=overlap,
            )
            for result, overlap in zip(results, self._overlaps(batch, ratio), strict=True)
        ]

    def _overlaps(self, batch: ImageBatch, ratio: float | None) -> list[tuple[float, ...]]:
        shares = None
        if self._overlap:
            shares = attention_overlap(self.model(batch, keep_ratio=ratio, with_auxiliary=True))
        return [()] * len(batch) if shares is None else [tuple(row) for row in shares.tolist()]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPredictorFactory:
    """Makes the predictor of a worker; small enough to send."""

    config: DetectionConfig
    keep_ratios: KeepRatios
    overlap: bool = False

    def __call__(self, model: SparseDetr, device: str, watch: Watch | None = None) -> MeasuredPredictor:
        """The predictor of this model on this device."""
        return MeasuredPredictor(
            model, self.config, keep_ratios=self.keep_ratios, device=device, overlap=self.overlap, watch=watch
        )
