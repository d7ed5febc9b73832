"""Options of `sparse-detr view`."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_detr.errors import require
from sparse_detr.storage.output import Replace, require_known


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig:
    """The output of a prediction, and where its page goes."""

    output: str
    """Output folder of a `predict` run, finished or not: a path, `file:` or `s3://` URI."""
    page: str = "view.html"
    """The page, an HTML file that needs no network: a path or `s3://` URI."""
    pictures: int = 60
    """Images that are shown with their boxes, chosen by chance; some 40 kB each."""
    seed: int = 0
    """Chooses other images."""
    existing: Replace = "refuse"
    """Choice for when there is a file at `page` already: `refuse` stops with an error, `overwrite` replaces it."""

    def __post_init__(self) -> None:
        require_known(self.existing)
        require(bool(self.output), "output: it is empty; give the output folder of a predict run")
        require(self.page.lower().endswith((".html", ".htm")), f"page: {self.page!r}; it is HTML, give a name in .html")
        # A thousand make a page of 40 MB, at which browsers still answer.
        require(0 <= self.pictures <= 1000, f"pictures: {self.pictures}; give 0 to 1000")
        require(self.seed >= 0, f"seed: {self.seed}; give 0 or more")
