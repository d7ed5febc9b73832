"""Options of a batch inference."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.detect.config import DetectionConfig, require_keep_ratio
from sparse_detr.errors import require
from sparse_detr.storage.output import Replace, require_known


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictConfig(DetectionConfig):
    """Detection into Parquet: one row an image, whatever the image is."""

    output: str
    """Folder or `s3://` prefix for the results; it must not hold those of another run. On a cluster of several
    machines a folder must be on a disk that they share, as must `model` and `images`."""
    keep_ratio: float | None = None
    """Share of each image's tokens that the encoder updates, in (0, 1]; by default the ratio of the training."""
    score_threshold: float = 0.3
    """Boxes below this score are left out; 0 keeps all."""
    existing: Replace = "refuse"
    """Choice for when `output` holds results of a run already: `refuse` stops with an error, `overwrite` deletes
    them, and nothing else."""
    max_error_share: float = 0.5
    """Stop once more than this share of all images has failed; 1 never stops."""
    max_errors: int | None = None
    """Stop once more images than this have failed; by default only the share counts."""
    coco_results: bool = False
    """Also write `coco_results.json`, the form that COCO's evaluation reads; needs `annotations` for image ids."""

    def __post_init__(self) -> None:
        DetectionConfig.__post_init__(self)
        require_known(self.existing)
        if self.keep_ratio is not None:
            require_keep_ratio(self.keep_ratio)
        require(bool(self.output), "output: it is empty; give a folder or an s3:// URI")
        require(0.0 <= self.score_threshold <= 1.0, f"score_threshold: {self.score_threshold}; give 0 to 1")
        require(0.0 <= self.max_error_share <= 1.0, f"max_error_share: {self.max_error_share}; give a share, 0 to 1")
        require(self.max_errors is None or self.max_errors >= 0, f"max_errors: {self.max_errors}; give 0 or more")
        require(
            not self.coco_results or self.annotations is not None,
            "coco_results: True without annotations; image ids come from there, so name a COCO JSON",
        )
