"""Images on their way to the model: fetched, decoded, cut into tiles where asked for, resized.

Decoded pixels never leave the process. An image that cannot be used becomes a result with a failure and disturbs no
other; a store that is away is waited for, because that says nothing of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from pipelines.detect.tiles import Tile, TileGrid
from sparse_detr.data.decode import decode_image
from sparse_detr.data.transforms import EvalTransform
from sparse_detr.errors import ImageError, StorageError, StoreRefusedError, StoreUnavailableError
from sparse_detr.records import Detections, ImageSize
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import PATIENCE, patiently


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image of a manifest."""

    index: int
    """Row in the manifest."""
    key: str
    etag: str | None = None
    """The content that was listed; None where it is not known, and any content will do."""


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
    tile: Tile | None = None
    """The part of the image that this is the outcome of, until the views of an image are merged; None for all of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyImage:
    """An image, or a tile of one, that is fetched, decoded and resized."""

    index: int
    key: str
    size: tuple[int, int]
    """(height, width) in pixels of the whole image before it was resized."""
    pixels: Tensor
    """3 x height x width, normalized."""
    tile: Tile | None = None
    """The part of the image that this is; None for the whole image."""


Locate = Callable[[str], Location]
"""From a key of the manifest to its place."""


class Watch(Protocol):
    """Told while an image is worked on; see `Watchdog`."""

    def working(self) -> AbstractContextManager[None]:
        """The time in which an image is decoded and resized."""


class ImageLoader:
    """Fetches, decodes, tiles and resizes; used by several threads at once."""

    def __init__(
        self, size: ImageSize, *, tiles: TileGrid | None = None, patience: float = PATIENCE, watch: Watch | None = None
    ) -> None:
        """Loader of images for a model that wants them of this size.

        Args:
            size: every image, and every tile, is resized to it.
            tiles: also cut an image into tiles, where it is larger than one.
            patience: seconds to wait for a store that is away.
            watch: told while an image is decoded.
        """
        self._transform = EvalTransform(size=size)
        self._tiles = tiles
        self._patience = patience
        self._watch = watch

    def load(self, locate: Locate, image: ImageRef) -> list[ReadyImage] | ImageResult:
        """The image and its tiles, all to pass the model; or a result with the reason why not.

        Raises:
            StoreUnavailableError: the store was away for longer than `patience`.
            StoreRefusedError: it refuses the credentials, or the bucket is gone: no image is to blame.
        """
        try:
            data = self.fetch(locate, image)
        except (StoreUnavailableError, StoreRefusedError):
            raise
        except StorageError as error:
            return ImageResult(index=image.index, key=image.key, failure=failure("fetch", error))
        return self.prepare(image, data)

    def prepare(self, image: ImageRef, data: bytes | UInt8[np.ndarray, "H W 3"]) -> list[ReadyImage] | ImageResult:
        """The same for a file that is here already, or for its pixels."""
        stage, size = "decode", None
        try:
            with self._watch.working() if self._watch else nullcontext():
                pixels = decode_image(data, name=image.key) if isinstance(data, bytes) else data
                stage, size = "resize", (pixels.shape[0], pixels.shape[1])
                return self._ready(image, pixels)
        except (ImageError, RuntimeError, MemoryError) as error:
            return ImageResult(index=image.index, key=image.key, size=size, failure=failure(stage, error))

    def fetch(self, locate: Locate, image: ImageRef) -> bytes:
        """The file.

        Raises:
            StorageError: it is not there, may not be read, or is another one than was listed.
            StoreUnavailableError: as `load`.
        """
        data, etag = patiently(locate(image.key).read_with_etag, seconds=self._patience)
        if image.etag and etag and image.etag != etag:
            raise StorageError(
                f"{image.key}: changed after it was listed (then {image.etag}, now {etag}); list the images again, "
                "which is a run with another output"
            )
        return data

    def _ready(self, image: ImageRef, pixels: UInt8[np.ndarray, "H W 3"]) -> list[ReadyImage]:
        size = (pixels.shape[0], pixels.shape[1])
        found = [ReadyImage(index=image.index, key=image.key, size=size, pixels=self._resized(image, pixels))]
        for tile in self._tiles.cut(size) if self._tiles else ():
            x, y, width, height = tile
            part = self._resized(image, pixels[y : y + height, x : x + width])
            found.append(ReadyImage(index=image.index, key=image.key, size=size, pixels=part, tile=tile))
        return found

    def _resized(self, image: ImageRef, pixels: UInt8[np.ndarray, "H W 3"]) -> Tensor:
        try:
            found, _ = self._transform(pixels, np.zeros((0, 4)), np.zeros(0, np.int64))
        except ImageError as error:
            raise ImageError(f"{image.key}: {error}") from None
        return found


def failure(stage: str, error: BaseException) -> ImageFailure:
    """The failure that an exception is."""
    return ImageFailure(stage=stage, type=type(error).__name__, message=str(error))
