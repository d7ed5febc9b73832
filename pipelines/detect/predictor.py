"""Images in, detections out, in one process: fetch, decode and resize in threads while the model runs.

Decoded pixels never leave the process. An image that cannot be used becomes a result with a failure and
disturbs no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8

from pipelines.detect.batch_size import fastest, speeds
from pipelines.detect.config import PredictorConfig
from pipelines.detect.device_errors import is_lasting
from pipelines.detect.images import ImageLoader, ImageRef, ImageResult, Locate, ReadyImage, Watch, failure
from pipelines.detect.prefetch import Block, Loaded, Prefetch
from pipelines.detect.tiles import Tile, TileGrid, View, merge_views
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import DeviceError, ImageError
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.ops.self_check import self_test
from sparse_detr.records import Detections, ImageBatch, Output
from sparse_detr.storage.location import Location, locate

_OPEN_BATCHES = 4
"""So many batches of resized images may wait for neighbours of their shape before one runs unfilled. More would fill
more batches of rare shapes, and each costs memory: 4 batches of 4 images of 800 x 1333 pixels hold 205 MB a worker
(16 x 3 x 800 x 1333 x 4 bytes)."""


class Predictor:
    """A model with the settings to run it."""

    def __init__(
        self,
        model: SparseDetr,
        config: PredictorConfig | None = None,
        *,
        keep_ratio: float | None = None,
        score_threshold: float = 0.0,
        device: torch.device | str = "cpu",
        tiles: TileGrid | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Take the model as it is loaded; it is moved to the device and into evaluation mode.

        Args:
            model: as it is loaded.
            config: batch size, image size, threads, detections an image.
            keep_ratio: at which every image passes the model; None is the model's own.
            score_threshold: boxes below are left out.
            device: `cpu` or `cuda`.
            tiles: also look at large images tile by tile.
            watch: told while an image is decoded; see `Watchdog`.

        Raises:
            ConfigError: one side is given, and does not go with the other one of the model's own size.
        """
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self._config = config = config or PredictorConfig()
        self._threshold = score_threshold
        self._keep_ratio = keep_ratio
        self.size = config.image_size(model.image_size)
        """Of images as they pass the model."""
        self._tiled = tiles is not None
        self._loader = ImageLoader(self.size, tiles=tiles, patience=config.store_patience, watch=watch)
        self._threads = ThreadPoolExecutor(config.fetch_threads, thread_name_prefix="fetch")

    def check(self) -> None:
        """Test the op, then run the model once on a blank image: what cannot work fails here, not on every image.

        Raises:
            ConfigError: the model cannot run at this keep ratio, or the compiled op fails its self-test.
            ImageError: it cannot run at this size, or gives numbers that are not finite.
            DeviceError: the GPU fails, and will go on to.
        """
        self_test(self.device.type)
        side = min(self.size.short_side, 256)
        blank = ReadyImage(index=0, key="self-check", size=(side, side), pixels=torch.zeros(3, side, side))
        for result in self._run_apart([blank]):
            if result.failure is not None:
                raise ImageError(
                    f"model: {result.failure.message} on a blank image of {side} x {side}; check the model, or raise "
                    "short_side"
                )

    def __call__(self, images: Sequence[str | Path | bytes | UInt8[np.ndarray, "H W 3"]]) -> list[ImageResult]:
        """Detections of a few images in this process: paths, URIs, files as bytes, or RGB pixels `[H, W, 3]`.

        An image that cannot be used has a `failure` in place of `detections`; `key` is the path, or the position.
        """
        block: list[ImageRef] = []
        ready: dict[int, list[ReadyImage] | ImageResult] = {}
        for index, image in enumerate(images):
            key = str(image) if isinstance(image, str | Path) else str(index)
            block.append(ImageRef(index=index, key=key))
            if not isinstance(image, str | Path):
                ready[index] = self._loader.prepare(block[-1], image)
        return next(self.detect_blocks(locate, [Block(images=block, ready=ready)]))

    def detect(self, root: Location, indices: Sequence[int], keys: Sequence[str]) -> list[ImageResult]:
        """The results of the images, in the order given.

        Args:
            root: folder of the images.
            indices: number of each image, all different.
            keys: path of each image below the root.
        """
        images = [ImageRef(index=index, key=key) for index, key in zip(indices, keys, strict=True)]
        return next(self.detect_blocks(root.child, [Block(images=images)]))

    def detect_blocks(self, place: Locate, blocks: Iterable[Block]) -> Iterator[list[ImageResult]]:
        """The results of one block after the other, each in the order of its images.

        Images of the next block are fetched while the model runs on this one's. A batch never holds images of two
        blocks, so a block's results are the same to the last bit whatever comes before or after it.

        Raises:
            StoreUnavailableError: the store was away for longer than the loader waits.
            DeviceError: the GPU fails for the rest of this process.
        """
        # The tiles of one image fill batches by themselves. 41 views of 800 x 800 pixels are 315 MB.
        room = self._config.fetch_threads + (0 if self._tiled else self.batch_size)
        for block, loaded in Prefetch(blocks, lambda block, image: self._submit(place, block, image), room):
            yield self._detected(block, loaded)

    @cached_property
    def batch_size(self) -> int:
        """Largest number of images that pass the model together; measured now where that is asked for."""
        size = self._config.batch_size
        return fastest(speeds(self.run, self.size)) if size == "auto" else size

    def _detected(self, block: Block, loaded: Iterator[Loaded]) -> list[ImageResult]:
        found: list[ImageResult] = []
        batch_size = 1 if block.one_by_one else self.batch_size
        open_batches: dict[tuple[int, ...], list[ReadyImage]] = {}
        for item in loaded:
            if isinstance(item, ImageResult):
                found.append(item)
                continue
            for ready in item:
                shape = tuple(ready.pixels.shape)
                open_batches.setdefault(shape, []).append(ready)
                if len(open_batches[shape]) == batch_size:
                    found += self._run_apart(open_batches.pop(shape))
                elif sum(map(len, open_batches.values())) >= _OPEN_BATCHES * batch_size:
                    found += self._run_apart(open_batches.pop(max(open_batches, key=lambda k: len(open_batches[k]))))
        for rest in open_batches.values():
            found += self._run_apart(rest)
        if self._tiled:
            found = self._merged(found)
        position = {image.index: place for place, image in enumerate(block.images)}
        return sorted(found, key=lambda result: position[result.index])

    def _submit(self, place: Locate, block: Block, image: ImageRef) -> Future[Loaded]:
        return self._threads.submit(self._load, place, block, image)

    def _load(self, place: Locate, block: Block, image: ImageRef) -> Loaded:
        known = block.failures.get(image.index)
        if known is not None:
            return ImageResult(index=image.index, key=image.key, failure=known)
        ready = block.ready.get(image.index)
        return self._loader.load(place, image) if ready is None else ready

    def _merged(self, results: Sequence[ImageResult]) -> list[ImageResult]:
        """One result an image, from those of the image and its tiles."""
        views: dict[int, list[ImageResult]] = {}
        for result in results:
            views.setdefault(result.index, []).append(result)
        return [self._one(found) for found in views.values()]

    def _one(self, views: Sequence[ImageResult]) -> ImageResult:
        failed = next((view for view in views if view.failure is not None), None)
        if failed is not None or len(views) == 1:
            return failed or views[0]
        size = views[0].size
        assert size is not None
        seen = [View(detections=view.detections, tile=view.tile) for view in views if view.detections is not None]
        return replace(views[0], detections=merge_views(seen, size, self._config.max_detections), tile=None)

    def _run_apart(self, images: Sequence[ReadyImage]) -> list[ImageResult]:
        """Results of images of one shape, one by one where they fail together.

        There is no padding, so none depends on its neighbours (but for rounding).

        Raises:
            DeviceError: no image can be run in this process any more.
        """
        try:
            return self.run(images)
        except (RuntimeError, ImageError) as error:
            if is_lasting(error):
                alone = images[0].index if len(images) == 1 else None
                # Further lines are advice on debugging.
                message = str(error).partition("\n")[0]
                raise DeviceError(
                    f"{images[0].key}: {message}; the GPU does nothing more for this process", alone
                ) from None
            if len(images) > 1:  # one of them, or their number, is too much: find out which
                return [result for image in images for result in self._run_apart([image])]
            failed = images[0]
            return [ImageResult(index=failed.index, key=failed.key, size=failed.size, failure=failure("model", error))]

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
        sizes = [image.size if image.tile is None else (image.tile[3], image.tile[2]) for image in images]
        found = postprocess(output, sizes, limit=self._config.max_detections)
        return [
            ImageResult(
                index=image.index,
                key=image.key,
                size=image.size,
                detections=_moved(_above(detections, self._threshold), image.tile),
                tile=image.tile,
            )
            for image, detections in zip(images, found, strict=True)
        ]


class MakePredictor(Protocol):
    """A picklable way to make a predictor."""

    def __call__(self, model: SparseDetr, device: str, watch: Watch | None = None) -> Predictor:
        """The predictor of this model on this device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorFactory:
    """Makes the predictor of a worker; small enough to send."""

    config: PredictorConfig
    keep_ratio: float | None = None
    score_threshold: float = 0.0
    tiles: TileGrid | None = None

    def __call__(self, model: SparseDetr, device: str, watch: Watch | None = None) -> Predictor:
        """The predictor of this model on this device."""
        return Predictor(
            model,
            self.config,
            keep_ratio=self.keep_ratio,
            score_threshold=self.score_threshold,
            device=device,
            tiles=self.tiles,
            watch=watch,
        )


def _above(detections: Detections, threshold: float) -> Detections:
    kept = (detections.scores >= threshold).cpu()
    return Detections(
        scores=detections.scores.cpu()[kept], labels=detections.labels.cpu()[kept], boxes=detections.boxes.cpu()[kept]
    )


def _moved(detections: Detections, tile: Tile | None) -> Detections:
    """The detections of a tile in pixels of its image."""
    if tile is None:
        return detections
    x, y, *_ = tile
    return replace(detections, boxes=detections.boxes + detections.boxes.new_tensor([x, y, x, y]))
