"""`sparse-detr data`: the data set as a table, with what is wrong with it."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import listing, progress_bar, values_table
from pipelines.data.config import CheckConfig, ImportVocConfig, MakeShapesConfig
from pipelines.data.run import DataReport, run_check, run_import_voc, run_shapes


def import_voc(config: ImportVocConfig) -> int:
    """Convert Pascal VOC annotations."""
    return _show(run_import_voc(config))


def make_shapes(config: MakeShapesConfig) -> int:
    """Draw the shapes data set."""
    with progress_bar("Drawing shapes") as move:
        report = run_shapes(config, move)
    return _show(report)


def check(config: CheckConfig) -> int:
    """Check a data set; 1 if images are broken."""
    with progress_bar("Decoding") as move:
        report = run_check(config, move)
    return _show(report)


def _show(report: DataReport) -> int:
    console = Console()
    facts = {"annotations": report.source, "images": report.images, "boxes": report.boxes, "crowd boxes": report.crowd}
    console.print(values_table("Data set", facts | report.classes))
    for title, lines in (("Boxes left out", report.dropped), ("Images that cannot be decoded", report.broken)):
        if lines:
            console.print(listing(title, lines), markup=False, highlight=False)
    return 1 if report.broken else 0
