"""Options of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparse_detr.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """The main job on embedded parts: shapes are generated and stored in S3, a tiny Sparse DETR is trained with Ray
    Train, varied with Ray Tune, and run over an image collection with Ray Data; everything is recorded in MLflow."""

    output: Path = Path("runs/demo")
    """Folder for everything that the demo leaves behind. What an earlier demo left there is replaced."""
    store: str | None = None
    """`s3://bucket/prefix` of a store that you have (credentials from the usual AWS variables), or a folder; without
    it a local S3 server runs for the time of the demo, with its data in `output`; on the cluster of RAY_ADDRESS it is
    needed."""
    tracking_uri: str | None = None
    """MLflow tracking URI; without it MLFLOW_TRACKING_URI, or a sqlite store in `output`."""
    images: int = 2000
    """Training images to generate."""
    validation: int = 300
    """Images that training never sees."""
    collection: int = 200
    """Images to detect objects in after the training; a few broken ones come on top."""
    epochs: int | None = None
    """Epochs of the training; without it those of the recipe `tiny`."""
    workers: int = 2
    """Data-parallel training workers."""
    trials: int = 3
    """Trials of the sweep."""
    trial_epochs: int = 2
    """Epochs of each trial; it starts from the trained model."""
    trial_images: int = 400
    """Training images of each trial."""
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 1.0)
    """Keep ratios at which the trained model is evaluated."""
    seed: int = 0
    """Everything random follows from it."""

    def __post_init__(self) -> None:
        for name in ("images", "validation", "collection", "workers", "trials", "trial_epochs", "trial_images"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}; give at least 1")
        require(self.epochs is None or self.epochs >= 1, f"epochs: {self.epochs}; give at least 1")
        require(
            self.trial_images <= self.images,
            f"trial_images: {self.trial_images} is more than images: {self.images}; give fewer",
        )
        require(
            bool(self.ratios) and all(0.0 < ratio <= 1.0 for ratio in self.ratios),
            f"ratios: {self.ratios}; give numbers in (0, 1]",
        )
