"""`sparse-detr predict`: counts and the first broken images; or what was drawn on a few."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from pipelines.cli.console import listing, progress_bar, rows_table, say, values_table
from pipelines.cluster.ray_log import kept_aside
from pipelines.cluster.session import announced
from pipelines.predict.config import PredictConfig
from pipelines.predict.draw import DrawnImage, draw
from pipelines.predict.dry_run import dry_run
from pipelines.predict.result import PredictResult
from pipelines.predict.run import predict
from sparse_detr.storage.location import locate


def predict_command(config: PredictConfig) -> int:
    """Detect, and show the counts and the first broken images; or draw a few, or say only what a run would do.

    Drawing ends with 1 where no image could be used.
    """
    if config.dry_run:
        return _show_plan(config)
    if config.draw is not None:
        with progress_bar("Drawing") as move:
            drawn = draw(config, on_progress=move)
        return _show_drawn(drawn, locate(config.draw).uri)
    with kept_aside(say), progress_bar("Detecting") as move:
        result = predict(
            config,
            on_progress=move,
            on_resume=lambda done, total: say(f"{done} of {total} images were done before; the run goes on"),
            on_wait=say,
            connect=announced(say),
        )
    if result.done_before == result.images:
        say("All images were done before; nothing was left to do.")
    _show(result)
    return 0


def _show(result: PredictResult) -> None:
    console = Console()
    facts = {"images": result.images, "detections": result.detections, "images with errors": result.errors,
             "batch size": result.batch_size or "-", "seconds": result.seconds, "output": result.output}  # fmt: skip
    if result.table is not None:
        facts[f"{result.table.format} table"] = f"{result.table.table}, version {result.table.version}"
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


def _show_drawn(images: tuple[DrawnImage, ...], folder: str) -> int:
    console = Console()
    drawn = [image for image in images if image.picture is not None]
    rows = [
        {
            "image": image.uri.rpartition("/")[2],
            "boxes": str(image.boxes),
            "best class": image.best[0] if image.best else "",
            "score": f"{image.best[1]:.2f}" if image.best else "",
        }
        for image in drawn
    ]
    if rows:
        console.print(rows_table(f"Pictures in {escape(folder)}", rows))
    failures = [f"{image.uri}: {image.failure.stage}: {image.failure.message}" for image in images if image.failure]
    if failures:
        console.print(listing("Images with errors", failures), markup=False, highlight=False)
    return 0 if drawn else 1
