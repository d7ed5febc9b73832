"""`sparse-detr train`: progress, the best epoch, and where the model is."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import progress_bar, say, values_table
from pipelines.cluster.ray_log import kept_aside
from pipelines.cluster.session import Connect, announced, ray_session
from pipelines.recipes.config import RunConfig
from pipelines.train.config import TrainOptions
from pipelines.train.dry_run import dry_run
from pipelines.train.overfit import overfit_one_batch
from pipelines.train.preflight import RunStart
from pipelines.train.replay import replay
from pipelines.train.run import Launch, train
from pipelines.train.trial_views import show_overfit, show_plan, show_replay


def train_command(config: TrainOptions, *, connect: Connect = ray_session, launch: Launch | None = None) -> int:
    """Train, with steps and loss on the progress bar, and show the best epoch and where the model is; or try the run
    here, or run one step of it again.

    A batch that is not learned, and a step that does not break again, end with 1.
    """
    if config.replay is not None:
        return show_replay(replay(config.replay))
    if config.dry_run:
        return show_plan(dry_run(config.run))
    if config.overfit_one_batch:
        with progress_bar("Learning one batch") as move:
            found = overfit_one_batch(config.run, move)
        return show_overfit(found)
    return _train(config.run, connect, launch)


def _train(config: RunConfig, connect: Connect, launch: Launch | None) -> int:
    with kept_aside(say), progress_bar("Training") as move:
        result = train(
            config,
            on_start=lambda start: say(start.describe()),
            on_progress=lambda progress: move(progress.step, progress.steps),
            connect=announced(say, connect),
            launch=launch,
        )
    best = result.best
    facts = {name: best[name] for name in ("epoch", "loss", "ap", "ap50", "ap75") if name in best}
    where: dict[str, object] = {"images/s": result.images_per_second, "seconds": result.seconds,
                                "model": result.checkpoint}  # fmt: skip
    where |= _start_rows(result.start) | _run_row(result.run_id)
    Console().print(values_table(f"Best epoch of {len(result.history)}", facts | where))
    return 0


def _start_rows(start: RunStart) -> dict[str, object]:
    rows: dict[str, object] = {"boxes left out": len(start.data.dropped)}
    return rows if start.weights is None else rows | {"starting weights": start.weights.describe()}


def _run_row(run_id: str | None) -> dict[str, object]:
    return {"MLflow run": run_id} if run_id else {}
