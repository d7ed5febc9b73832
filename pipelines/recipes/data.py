"""Images and annotations of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sparse_detr.data.transforms import AugmentConfig
from sparse_detr.errors import require
from sparse_detr.records import ImageSize


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Images and COCO annotations of a run, and their way into tensors."""

    train_annotations: str = ""
    """Path or URI of the training annotations (COCO JSON)."""
    train_images: str = ""
    """Folder or prefix that the training file names are relative to."""
    train_limit: int | None = None
    """Train on this many of the training images only, the first ones of the file; unset takes all."""
    val_annotations: str = ""
    """Path or URI of the validation annotations (COCO JSON)."""
    val_images: str = ""
    """Folder or prefix that the validation file names are relative to."""
    short_side: int = 800
    """Validation images are resized so that their shorter side has this many pixels ..."""
    max_side: int = 1333
    """... unless the longer side would then exceed this many."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training images."""
    loader_workers: int = 0
    """Processes that prepare batches beside each training worker; 0 prepares them in the worker itself."""
    cache: Literal["none", "bytes", "pixels"] = "bytes"
    """Of training images in the memory of each worker after the first read, up to 2 GiB: nothing, files, or decoded
    images."""
    broken_images: Literal["stop", "skip"] = "stop"
    """Choice for a training image that cannot be decoded, or has another size than its annotations say: `stop` ends the
    run and names it; with `skip` the next sound image of the file stands in for it, with its augmentation, so that a
    step has as many images as ever and is the same for any number of workers."""
    broken_share: float = 0.01
    """With `skip`: share of the training images that may be broken, in [0, 1]; the run stops when more are found."""

    def __post_init__(self) -> None:
        require(self.short_side >= 32, f"data.short_side: {self.short_side}; give at least 32 pixels")
        require(
            self.max_side >= self.short_side,
            f"data.max_side: {self.max_side} is below data.short_side: {self.short_side}; give at least as much",
        )
        require(
            self.cache in ("none", "bytes", "pixels"),
            f"data.cache: {self.cache!r} is not known; choose none, bytes or pixels",
        )
        require(
            self.train_limit is None or self.train_limit >= 1,
            f"data.train_limit: {self.train_limit}; give at least 1, or leave it out",
        )
        require(
            self.broken_images in ("stop", "skip"),
            f"data.broken_images: {self.broken_images!r} is not known; choose stop or skip",
        )
        require(0 <= self.broken_share <= 1, f"data.broken_share: {self.broken_share}; give a share in [0, 1]")
        require(self.loader_workers >= 0, f"data.loader_workers: {self.loader_workers}; give 0 or more")

    @property
    def image_size(self) -> ImageSize:
        """The size of validation images, which the model keeps as its own."""
        return ImageSize(short_side=self.short_side, max_side=self.max_side)
