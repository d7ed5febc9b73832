"""Options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.detect.config import DetectionConfig, require_keep_ratio
from sparse_detr.errors import require
from sparse_detr.storage.output import Replace, require_known


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig(DetectionConfig):
    """A model, a data set in COCO form, and how to run the one on the other."""

    annotations: str
    """COCO JSON with the true boxes of the images below `images`."""
    keep_ratio: tuple[float, ...] | None = None
    """Shares of each image's tokens that the encoder updates, in (0, 1]; by default the ratio of the training. Several
    give a table and a plot: precision, cost and time of the one model at each."""
    output: str | None = None
    """Also write the detections to this file (a path or `s3://` URI), as COCO results in JSON; with several keep
    ratios one file for each, the ratio in its name."""
    plot: str | None = None
    """With several keep ratios, the PNG of the plot: a path or `s3://` URI; by default beside `output`, or
    keep_ratios.png."""
    existing: Replace = "refuse"
    """Choice for when there are files at `output` or `plot` already: `refuse` stops with an error, `overwrite`
    replaces them."""
    attention_overlap: bool = False
    """Also measure Corr, the share of the decoder's attention that falls on kept tokens; takes twice the time."""

    def __post_init__(self) -> None:
        DetectionConfig.__post_init__(self)
        require_known(self.existing)
        require(self.keep_ratio != (), "keep_ratio: no number; give one or more in (0, 1], or leave it out")
        ratios = self.keep_ratio or ()
        for ratio in ratios:
            require_keep_ratio(ratio)
        require(
            len({f"{ratio:g}" for ratio in ratios}) == len(ratios),
            f"keep_ratio: {ratios} has a ratio twice, in the six digits that name its file; give each once",
        )
        require(
            self.plot is None or self.plot.lower().endswith(".png"),
            f"plot: {self.plot}; the plot is a PNG, give a name in .png",
        )
        require(
            self.plot is None or len(ratios) > 1,
            f"plot: {self.plot} with {len(ratios)} keep ratios; give keep_ratio two or more",
        )
