"""`sparse-detr predict`: counts and the first broken images."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import listing, progress_bar, say, values_table
from pipelines.cluster.ray_log import kept_aside
from pipelines.cluster.session import announced
from pipelines.predict.config import PredictConfig
from pipelines.predict.dry_run import dry_run
from pipelines.predict.run import PredictResult, predict


def predict_command(config: PredictConfig) -> int:
    """Detect, and show the counts and the first broken images; or only what a run would do."""
    if config.dry_run:
        return _show_plan(config)
    with kept_aside(say), progress_bar("Detecting") as move:
        result = predict(
            config,
            on_progress=move,
            on_resume=lambda done, total: say(f"{done} of {total} images were done before; the run goes on"),
            connect=announced(say),
        )
    if result.done_before == result.images:
        say("All images were done before; nothing was left to do.")
    _show(result)
    return 0


def _show(result: PredictResult) -> None:
    console = Console()
    facts = {"images": result.images, "detections": result.detections, "images with errors": result.errors,
             "seconds": result.seconds, "output": result.output}  # fmt: skip
    console.print(values_table("Detections", facts))
    rows = [f"{row.uri}: {row.stage}: {row.message}" for row in result.error_rows]
    if rows:
        console.print(listing("Images with errors", rows, total=result.errors), markup=False, highlight=False)


def _show_plan(config: PredictConfig) -> int:
    plan = dry_run(config)
    console = Console()
    console.print(values_table("Dry run: nothing was written", plan.facts()))
    console.print(listing("First images", list(plan.first), total=plan.images), markup=False, highlight=False)
    if plan.failures:
        console.print(listing("Images of the sample with errors", list(plan.failures)), markup=False, highlight=False)
    return 0
