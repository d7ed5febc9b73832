"""`sparse-detr predict`: counts and the first broken images."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import listing, progress_bar, say, values_table
from pipelines.cluster.ray_log import kept_aside
from pipelines.cluster.session import announced
from pipelines.predict.config import PredictConfig
from pipelines.predict.run import predict


def predict_command(config: PredictConfig) -> int:
    """Detect, and show the counts and the first broken images."""
    with kept_aside(say), progress_bar("Detecting") as move:
        result = predict(config, on_progress=move, connect=announced(say))
    console = Console()
    facts = {"images": result.images, "detections": result.detections, "images with errors": result.errors,
             "seconds": result.seconds, "output": result.output}  # fmt: skip
    console.print(values_table("Detections", facts))
    rows = [f"{row.uri}: {row.stage}: {row.message}" for row in result.error_rows]
    if rows:
        console.print(listing("Images with errors", rows), markup=False, highlight=False)
    return 0
