"""Options of `sparse-detr explain`."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_detr.errors import require
from sparse_detr.storage.output import Replace, require_known


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainConfig:
    """An image, a model, and where the picture goes."""

    image: str
    """Image file: a path, `file:` or `s3://` URI."""
    model: str
    """Model folder: a path, `file:` or `s3://` URI, as training writes it; or a name of MLflow's,
    `models:/name@alias`."""
    output: str = "explain.png"
    """The picture, a PNG: a path or `s3://` URI."""
    keep_ratio: float | None = None
    """Share of the image's tokens that the encoder updates, in (0, 1]; by default the ratio of the training."""
    threshold: float = 0.4
    """Detections of a lower score are not drawn."""
    short_side: int | None = None
    """Pixels to which the shorter side is resized; by default the size that the model was evaluated at in training,
    or 800 where its folder does not tell."""
    max_side: int | None = None
    """The longer side never gets more pixels than this; by default the model's own, or 1333."""
    existing: Replace = "refuse"
    """Choice for when there is a file at `output` already: `refuse` stops with an error, `overwrite` replaces it."""

    def __post_init__(self) -> None:
        require_known(self.existing)
        for name in ("image", "model", "output"):
            require(bool(getattr(self, name)), f"{name}: it is empty; give a path or an s3:// URI")
        require(0.0 <= self.threshold <= 1.0, f"threshold: {self.threshold}; give 0 to 1")
        require(
            self.keep_ratio is None or 0.0 < self.keep_ratio <= 1.0,
            f"keep_ratio: {self.keep_ratio}; give a number in (0, 1], or leave it out",
        )
        require(
            self.output.lower().endswith(".png"), f"output: {self.output}; the picture is a PNG, give a name in .png"
        )
        for name in ("short_side", "max_side"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}: {value}; give a whole number of at least 1")
