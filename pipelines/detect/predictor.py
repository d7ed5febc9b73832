"""Images in, detections out, in one process: fetch, decode and resize in threads while the model runs.

Decoded pixels never leave the process. An image that cannot be used becomes a result with a failure and
disturbs no other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pipelines.detect.config import DetectionConfig
from sparse_detr.data.decode import decode_image
from sparse_detr.data.transforms import EvalTransform
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ImageError, StorageError
from sparse_detr.evaluation.attention_overlap import attention_overlap
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.ops.self_check import self_test
from sparse_detr.records import Detections, ImageBatch
from sparse_detr.storage.location import Location

_OPEN_BATCHES = 4
"""So many batches of resized images may wait for neighbours of their shape before one runs unfilled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFailure:
    """Why an image has no detections."""

    stage: str
    """`fetch`, `decode`, `resize` or `model`."""
    type: str
    """Class of the exception."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What was seen while the model ran on an image."""

    keep_ratio: float | None
    """The ratio that it ran at; None is the model's own."""
    seconds: float
    """Time of the model's forward alone for the batch that the image was in, over the images of the batch."""
    input_size: tuple[int, int]
    """(height, width) in pixels of what the model saw."""
    overlap: tuple[float, ...] = ()
    """Share of the decoder's attention on kept tokens, see `attention_overlap`; empty if not asked for, or where there
    is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """What became of one image, at one keep ratio: detections, or a failure."""

    index: int
    """Row of the image in the manifest."""
    key: str
    size: tuple[int, int] | None = None
    """(height, width) in pixels; None where it could not be decoded."""
    detections: Detections | None = None
    failure: ImageFailure | None = None
    measures: Measures | None = None
    """None with a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    index: int
    key: str
    size: tuple[int, int]
    pixels: Tensor


class Predictor:
    """A model with the settings to run it."""

    def __init__(
        self,
        model: SparseDetr,
        config: DetectionConfig,
        *,
        score_threshold: float = 0.0,
        device: torch.device | str = "cpu",
        overlap: bool = False,
    ) -> None:
        """Take the model as it is loaded; it is moved to the device and into evaluation mode.

        Args:
            overlap: also measure how much of the decoder's attention falls on kept tokens; every batch then passes
                the model twice, as a pass that returns its attention tells nothing of its speed.

        Raises:
            ConfigError: one side is given, and does not go with the other one of the model's own size.
        """
        self._model = model.to(device).eval()
        self._config = config
        self._threshold = score_threshold
        self._device = torch.device(device)
        self._overlap = overlap
        self._turns = 0
        self._size = config.image_size(model.image_size)
        self._transform = EvalTransform(size=self._size)
        self._threads = ThreadPoolExecutor(config.fetch_threads, thread_name_prefix="fetch")

    def check(self) -> None:
        """Test the op, then run the model once on a blank image: what cannot work fails here, not on every image.

        Raises:
            ConfigError: the model cannot run at this keep ratio, or the compiled op fails its self-test.
            ImageError: it cannot run at this size, or gives numbers that are not finite.
        """
        self_test(self._device.type)
        side = min(self._size.short_side, 256)
        blank = _Ready(index=0, key="self-check", size=(side, side), pixels=torch.zeros(3, side, side))
        for result in self._run([blank]):
            if result.failure is not None:
                raise ImageError(
                    f"model: {result.failure.message} on a blank image of {side} x {side}; check the model, or raise "
                    "short_side"
                )

    def detect(self, root: Location, indices: Sequence[int], keys: Sequence[str]) -> list[ImageResult]:
        """One result for every image and keep ratio: images in the order given, the ratios of each together and in
        their order; one alone for an image that failed.

        Args:
            root: folder of the images.
            indices: number of each image, all different.
            keys: path of each image below the root.
        """
        found: list[ImageResult] = []
        waiting: dict[tuple[int, ...], list[_Ready]] = {}
        for item in self._fetched(root, zip(indices, keys, strict=True)):
            if isinstance(item, ImageResult):
                found.append(item)
                continue
            shape = tuple(item.pixels.shape)
            waiting.setdefault(shape, []).append(item)
            if len(waiting[shape]) == self._config.batch_size:
                found += self._run(waiting.pop(shape))
            elif sum(map(len, waiting.values())) >= _OPEN_BATCHES * self._config.batch_size:
                found += self._run(waiting.pop(max(waiting, key=lambda key: len(waiting[key]))))
        for ready in waiting.values():
            found += self._run(ready)
        position = {index: place for place, index in enumerate(indices)}
        turn = {ratio: place for place, ratio in enumerate(self._config.ratios)}

        def order(result: ImageResult) -> tuple[int, int]:
            measures = result.measures
            return position[result.index], 0 if measures is None else turn[measures.keep_ratio]

        return sorted(found, key=order)

    def _fetched(self, root: Location, items: Iterable[tuple[int, str]]) -> Iterator[_Ready | ImageResult]:
        """The images in order; a few are fetched ahead of the one that is asked for."""
        ahead: deque[Future[_Ready | ImageResult]] = deque()
        for index, key in items:
            ahead.append(self._threads.submit(self._load, root, index, key))
            if len(ahead) > self._config.fetch_threads + self._config.batch_size:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _load(self, root: Location, index: int, key: str) -> _Ready | ImageResult:
        stage, size = "fetch", None
        try:
            data = root.child(key).read_bytes()
            stage = "decode"
            image = decode_image(data, name=key)
            stage, size = "resize", (image.shape[0], image.shape[1])
            return _Ready(index=index, key=key, size=size, pixels=self._resized(image))
        except (StorageError, ImageError, RuntimeError, MemoryError) as error:
            return ImageResult(index=index, key=key, size=size, failure=_failure(stage, error))

    def _resized(self, image: UInt8[np.ndarray, "H W 3"]) -> Tensor:
        pixels, _ = self._transform(image, np.zeros((0, 4)), np.zeros(0, np.int64))
        return pixels

    def _run(self, images: Sequence[_Ready]) -> list[ImageResult]:
        """Detections of images of one shape. No padding, so none depends on its neighbours (but for rounding)."""
        try:
            return self._forward(images)
        except (RuntimeError, ImageError) as error:
            if len(images) > 1:  # one of them, or their number, is too much: find out which
                return [result for image in images for result in self._run([image])]
            failed = images[0]
            return [ImageResult(index=failed.index, key=failed.key, size=failed.size, failure=_failure("model", error))]

    @torch.inference_mode()
    def _forward(self, images: Sequence[_Ready]) -> list[ImageResult]:
        batch = ImageBatch.from_list([image.pixels for image in images]).to(self._device)
        return [result for ratio in self._in_turn() for result in self._at_ratio(images, batch, ratio)]

    def _in_turn(self) -> Sequence[float | None]:
        """The ratios, each batch another one first: what warms up or is cached favours none."""
        ratios = self._config.ratios
        first = self._turns % len(ratios)
        self._turns += 1
        return (*ratios[first:], *ratios[:first])

    def _at_ratio(self, images: Sequence[_Ready], batch: ImageBatch, ratio: float | None) -> list[ImageResult]:
        started = self._now()
        output = self._model(batch, keep_ratio=ratio)
        seconds = (self._now() - started) / len(images)
        if not bool(torch.isfinite(output.logits).all() and torch.isfinite(output.boxes).all()):
            raise ImageError(f"{images[0].key}: the model's output is not finite; check its weights")
        found = postprocess(output, [image.size for image in images], limit=self._config.max_detections)
        overlaps = self._overlaps(batch, ratio)
        height, width = batch.pixels.shape[2:]
        return [
            ImageResult(
                index=image.index,
                key=image.key,
                size=image.size,
                detections=_above(detections, self._threshold),
                measures=Measures(keep_ratio=ratio, seconds=seconds, input_size=(height, width), overlap=overlap),
            )
            for image, detections, overlap in zip(images, found, overlaps, strict=True)
        ]

    def _overlaps(self, batch: ImageBatch, ratio: float | None) -> list[tuple[float, ...]]:
        shares = None
        if self._overlap:
            shares = attention_overlap(self._model(batch, keep_ratio=ratio, with_auxiliary=True))
        return [()] * len(batch) if shares is None else [tuple(row) for row in shares.tolist()]

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _above(detections: Detections, threshold: float) -> Detections:
    kept = (detections.scores >= threshold).cpu()
    return Detections(
        scores=detections.scores.cpu()[kept], labels=detections.labels.cpu()[kept], boxes=detections.boxes.cpu()[kept]
    )


def _failure(stage: str, error: BaseException) -> ImageFailure:
    return ImageFailure(stage=stage, type=type(error).__name__, message=str(error))
