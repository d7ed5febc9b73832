"""Options of `sparse-detr convert`."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparse_detr.errors import require
from sparse_detr.storage.output import Replace, require_known
from sparse_detr.weights.authors.config import Hints


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig:
    """Source and target of a conversion. A folder is a model of ours, anything else a checkpoint of the authors."""

    source: str
    """The authors' .pth file: a path, `s3://` or `https://` address, which may end in #sha256=<hex digits> (on the web
    a must); or our model folder: a path or `s3://` URI."""
    output: str
    """Our model folder, or the .pth file where the source is one of ours: a path or `s3://` URI."""
    keep_ratio: float | None = None
    """Of the authors' checkpoint: the share of tokens it was trained with, in (0, 1). It wins over what the file says;
    files without arguments say nothing."""
    hints: Hints = field(default_factory=Hints)
    """Of the authors' checkpoint: what neither its tensors nor its arguments show."""
    ignore_scoring_mean: bool = False
    """Of our model: give it to the authors' code although its scoring network leaves padding out of its mean. In
    batches with padding that code then chooses other tokens."""
    existing: Replace = "refuse"
    """Choice for when there is something at `output` already: `refuse` stops with an error, `overwrite` replaces
    it."""

    def __post_init__(self) -> None:
        require_known(self.existing)
        for name in ("source", "output"):
            require(bool(getattr(self, name)), f"{name}: it is empty; give a path or an s3:// URI")
        ratio = self.keep_ratio
        require(ratio is None or 0.0 < ratio <= 1.0, f"keep_ratio: {ratio}; give a number in (0, 1]")
