"""Images in, detections out, in one process: fetch, decode and resize in threads while the model runs.

Decoded pixels never leave the process. An image that cannot be used becomes a result with a failure and
disturbs no other.
"""

from __future__ import annotations

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
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.ops.self_check import self_test
from sparse_detr.records import Detections, ImageBatch, Output
from sparse_detr.storage.location import Location

_OPEN_BATCHES = 4
"""So many batches of resized images may wait for neighbours of their shape before one runs unfilled. More would fill
more batches of rare shapes, and each costs memory: 4 batches of 4 images of 800 x 1333 pixels hold 205 MB a worker
(16 x 3 x 800 x 1333 x 4 bytes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFailure:
    """Why an image has no detections."""

    stage: str
    """`fetch`, `decode`, `resize` or `model`."""
    type: str
    """Class of the exception."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """The outcome of one image: detections, or a failure."""

    index: int
    """Row of the image in the manifest."""
    key: str
    size: tuple[int, int] | None = None
    """(height, width) in pixels; None where it could not be decoded."""
    detections: Detections | None = None
    failure: ImageFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyImage:
    """An image that is fetched, decoded and resized."""

    index: int
    key: str
    size: tuple[int, int]
    """(height, width) in pixels before it was resized."""
    pixels: Tensor
    """3 x height x width, normalized."""


class Predictor:
    """A model with the settings to run it."""

    def __init__(
        self,
        model: SparseDetr,
        config: DetectionConfig,
        *,
        keep_ratio: float | None = None,
        score_threshold: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take the model as it is loaded; it is moved to the device and into evaluation mode.

        Args:
            model: as it is loaded.
            config: batch size, image size, threads, detections an image.
            keep_ratio: at which every image passes the model; None is the model's own.
            score_threshold: boxes below are left out.
            device: `cpu` or `cuda`.

        Raises:
            ConfigError: one side is given, and does not go with the other one of the model's own size.
        """
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self._config = config
        self._threshold = score_threshold
        self._keep_ratio = keep_ratio
        self._size = config.image_size(model.image_size)
        self._transform = EvalTransform(size=self._size)
        self._threads = ThreadPoolExecutor(config.fetch_threads, thread_name_prefix="fetch")

    def check(self) -> None:
        """Test the op, then run the model once on a blank image: what cannot work fails here, not on every image.

        Raises:
            ConfigError: the model cannot run at this keep ratio, or the compiled op fails its self-test.
            ImageError: it cannot run at this size, or gives numbers that are not finite.
        """
        self_test(self.device.type)
        side = min(self._size.short_side, 256)
        blank = ReadyImage(index=0, key="self-check", size=(side, side), pixels=torch.zeros(3, side, side))
        for result in self._run_apart([blank]):
            if result.failure is not None:
                raise ImageError(
                    f"model: {result.failure.message} on a blank image of {side} x {side}; check the model, or raise "
                    "short_side"
                )

    def detect(self, root: Location, indices: Sequence[int], keys: Sequence[str]) -> list[ImageResult]:
        """The results of the images, in the order given.

        Args:
            root: folder of the images.
            indices: number of each image, all different.
            keys: path of each image below the root.
        """
        found: list[ImageResult] = []
        waiting: dict[tuple[int, ...], list[ReadyImage]] = {}
        for item in self._fetched(root, zip(indices, keys, strict=True)):
            if isinstance(item, ImageResult):
                found.append(item)
                continue
            shape = tuple(item.pixels.shape)
            waiting.setdefault(shape, []).append(item)
            if len(waiting[shape]) == self._config.batch_size:
                found += self._run_apart(waiting.pop(shape))
            elif sum(map(len, waiting.values())) >= _OPEN_BATCHES * self._config.batch_size:
                found += self._run_apart(waiting.pop(max(waiting, key=lambda key: len(waiting[key]))))
        for ready in waiting.values():
            found += self._run_apart(ready)
        position = {index: place for place, index in enumerate(indices)}
        return sorted(found, key=lambda result: position[result.index])

    def _fetched(self, root: Location, items: Iterable[tuple[int, str]]) -> Iterator[ReadyImage | ImageResult]:
        """The images in order; a few are fetched ahead of the one that is asked for."""
        ahead: deque[Future[ReadyImage | ImageResult]] = deque()
        for index, key in items:
            ahead.append(self._threads.submit(self._load, root, index, key))
            if len(ahead) > self._config.fetch_threads + self._config.batch_size:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _load(self, root: Location, index: int, key: str) -> ReadyImage | ImageResult:
        stage, size = "fetch", None
        try:
            data = root.child(key).read_bytes()
            stage = "decode"
            image = decode_image(data, name=key)
            stage, size = "resize", (image.shape[0], image.shape[1])
            return ReadyImage(index=index, key=key, size=size, pixels=self._resized(image))
        except (StorageError, ImageError, RuntimeError, MemoryError) as error:
            return ImageResult(index=index, key=key, size=size, failure=_failure(stage, error))

    def _resized(self, image: UInt8[np.ndarray, "H W 3"]) -> Tensor:
        pixels, _ = self._transform(image, np.zeros((0, 4)), np.zeros(0, np.int64))
        return pixels

    def _run_apart(self, images: Sequence[ReadyImage]) -> list[ImageResult]:
        """Results of images of one shape, one by one where they fail together.

        There is no padding, so none depends on its neighbours (but for rounding).
        """
        try:
            return self.run(images)
        except (RuntimeError, ImageError) as error:
            if len(images) > 1:  # one of them, or their number, is too much: find out which
                return [result for image in images for result in self._run_apart([image])]
            failed = images[0]
            return [ImageResult(index=failed.index, key=failed.key, size=failed.size, failure=_failure("model", error))]

    @torch.inference_mode()
    def run(self, images: Sequence[ReadyImage]) -> list[ImageResult]:
        """Detections of images of one shape; the part that a predictor with instruments of its own replaces.

        Raises:
            ImageError, RuntimeError: the model cannot run on them; each is then tried alone.
        """
        output = self.model(self.batch(images), keep_ratio=self._keep_ratio)
        return self.results(images, output)

    def batch(self, images: Sequence[ReadyImage]) -> ImageBatch:
        """The images as the model takes them, on its device."""
        return ImageBatch.from_list([image.pixels for image in images]).to(self.device)

    def results(self, images: Sequence[ReadyImage], output: Output) -> list[ImageResult]:
        """One result an image, in their order.

        Raises:
            ImageError: the output is not finite.
        """
        if not bool(torch.isfinite(output.logits).all() and torch.isfinite(output.boxes).all()):
            raise ImageError(f"{images[0].key}: the model's output is not finite; check its weights")
        found = postprocess(output, [image.size for image in images], limit=self._config.max_detections)
        return [
            ImageResult(
                index=image.index, key=image.key, size=image.size, detections=_above(detections, self._threshold)
            )
            for image, detections in zip(images, found, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorFactory:
    """Makes the predictor of a worker; small enough to send."""

    config: DetectionConfig
    keep_ratio: float | None = None
    score_threshold: float = 0.0

    def __call__(self, model: SparseDetr, device: str) -> Predictor:
        """The predictor of this model on this device."""
        return Predictor(
            model, self.config, keep_ratio=self.keep_ratio, score_threshold=self.score_threshold, device=device
        )


def _above(detections: Detections, threshold: float) -> Detections:
    kept = (detections.scores >= threshold).cpu()
    return Detections(
        scores=detections.scores.cpu()[kept], labels=detections.labels.cpu()[kept], boxes=detections.boxes.cpu()[kept]
    )


def _failure(stage: str, error: BaseException) -> ImageFailure:
    return ImageFailure(stage=stage, type=type(error).__name__, message=str(error))
