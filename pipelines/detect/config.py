"""Options of detection over a collection of images, shared by predict and evaluate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipelines.tracking.model_uri import model_folder
from sparse_detr.errors import require
from sparse_detr.records import COCO_IMAGE_SIZE, ImageSize
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.retry import PATIENCE

IMAGES_PER_BLOCK = 64
"""Images that are detected together, where nothing else is asked for. Training's validation takes as many, so that its
batches are those of `evaluate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorConfig:
    """Sizes and pace of a predictor, in one process."""

    short_side: int | None = None
    """Pixels to which the shorter side is resized; by default the size that the model was evaluated at in training,
    or 800 where its folder does not tell."""
    max_side: int | None = None
    """The longer side never gets more pixels than this; it wins over `short_side`. By default the model's own, or 1333
    where its folder does not tell."""
    max_detections: int = 100
    """At most so many boxes an image, best first. With tiles, for each tile and for the image; raise it for images of
    many objects."""
    batch_size: int | Literal["auto"] = 4
    """Images that pass the model together. Only images of one resized shape do, so the batch pads nothing. `auto`
    measures what is fastest on a worker before the first image, and a run that goes on keeps it."""
    fetch_threads: int = 4
    """Images that a worker fetches and decodes at the same time, while the model runs."""
    store_patience: float = PATIENCE
    """Seconds to wait for a store that is away or busy; what is not read or written then is left undone."""

    def __post_init__(self) -> None:
        for name in ("short_side", "max_side", "max_detections", "fetch_threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}: {value}; give a whole number of at least 1")
        size = self.batch_size
        require(
            size == "auto" or (isinstance(size, int) and size >= 1),
            f"batch_size: {size}; give a whole number of at least 1, or auto",
        )
        if self.short_side is not None and self.max_side is not None:
            self.image_size(None)
        require(
            math.isfinite(self.store_patience) and self.store_patience >= 0,
            f"store_patience: {self.store_patience}; give seconds, 0 or more",
        )

    def image_size(self, own: ImageSize | None) -> ImageSize:
        """The size to use: what is given here, else the model's own, else the authors' for COCO.

        Raises:
            ConfigError: the longer side would be less than the shorter one.
        """
        return (own or COCO_IMAGE_SIZE).with_sides(self.short_side, self.max_side)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionConfig(PredictorConfig):
    """Model, images, sizes and workers of a detection."""

    model: str
    """Model folder: a path, `file:` or `s3://` URI, as training writes it; or `models:/name@alias`,
    `models:/name/version` or `runs:/run id/model` of the MLflow that MLFLOW_TRACKING_URI names."""
    images: str
    """Folder or `s3://` prefix of the images."""
    annotations: str | None = None
    """COCO JSON whose `images` list names the files below `images`; without it every image file there is taken."""
    workers: int | None = None
    """Processes that each hold the model; by default one a GPU, or one a CPU core where there is no GPU."""
    cpus_per_worker: float = 0.5
    """CPU cores that Ray books for a worker; less is booked where the cluster is small, so that one stays free."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` takes GPUs where the Ray cluster has any."""
    images_per_block: int = IMAGES_PER_BLOCK
    """Images of one unit of work, and of one Parquet file: what is redone when a worker dies. With 64, ten million
    images make 156 250 files of at most 0.3 MB before compression (64 x 100 boxes of some 46 bytes)."""

    image_seconds: float = 60.0
    """Longest decoding of one image, seconds; one that takes longer, or that ends its process, gets an error row."""

    def __post_init__(self) -> None:
        PredictorConfig.__post_init__(self)
        for name in ("model", "images"):
            require(bool(getattr(self, name)), f"{name}: it is empty; give a folder or an s3:// URI")
        require(self.images_per_block >= 1, f"images_per_block: {self.images_per_block}; give at least 1")
        require(self.workers is None or self.workers >= 1, f"workers: {self.workers}; give at least 1")
        for name in ("cpus_per_worker", "image_seconds"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"{name}: {value}; give a number above 0")
        require(self.device in ("auto", "cpu", "gpu"), f"device: {self.device!r}; choose auto, cpu or gpu")

    def model_location(self) -> Location:
        """The model folder; one that MLflow names is asked for there.

        Raises:
            CheckpointError, ConfigError, StorageError: MLflow does not know it, is not named, or does not answer.
        """
        return locate(model_folder(self.model))


def require_keep_ratio(ratio: float) -> None:
    """Raise ConfigError unless the ratio is in (0, 1]."""
    require(0.0 < ratio <= 1.0, f"keep_ratio: {ratio}; give a number in (0, 1], or leave it out")
