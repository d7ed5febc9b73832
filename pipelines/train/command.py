"""`sparse-detr train`: progress, the best epoch, and where the model is."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import say, values_table
from pipelines.cluster.ray_log import kept_aside
from pipelines.cluster.session import Connect, announced, ray_session
from pipelines.recipes.config import RunConfig
from pipelines.train.display import TrainDisplay
from pipelines.train.preflight import RunStart
from pipelines.train.run import Launch, TrainResult, train


def train_command(config: RunConfig, *, connect: Connect = ray_session, launch: Launch | None = None) -> int:
    """Train, with steps and loss on the progress bar, and show the best epoch and where the model is."""
    with kept_aside(say), TrainDisplay() as display:
        result = train(
            config,
            on_start=lambda start: display.say(start.describe()),
            on_progress=display.report,
            connect=announced(display.say, connect),
            launch=launch,
        )
    best = result.best
    facts = {name: best[name] for name in ("epoch", "loss", "ap", "ap50", "ap75") if name in best}
    where: dict[str, object] = {"images/s": result.images_per_second, "seconds": result.seconds,
                                "model": result.checkpoint}  # fmt: skip
    where |= _start_rows(result.start) | _run_rows(result)
    Console().print(values_table(f"Best epoch of {len(result.history)}", facts | where))
    return 0


def _start_rows(start: RunStart) -> dict[str, object]:
    rows: dict[str, object] = {"boxes left out": len(start.data.dropped)}
    return rows if start.weights is None else rows | {"starting weights": start.weights.describe()}


def _run_rows(result: TrainResult) -> dict[str, object]:
    rows = {"MLflow run": result.run_id, "registered model": result.registered}
    return {name: value for name, value in rows.items() if value}
