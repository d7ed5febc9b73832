"""`sparse-detr train`: progress, the best epoch, and where the model is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from pipelines.cli.console import progress_bar, say, values_table
from pipelines.cli.interruption import Interrupted
from pipelines.cluster.ray_log import kept_aside
from pipelines.cluster.session import Connect, announced, ray_session
from pipelines.recipes.config import RunConfig
from pipelines.train.config import TrainOptions
from pipelines.train.display import TrainDisplay
from pipelines.train.dry_run import dry_run
from pipelines.train.overfit import overfit_one_batch
from pipelines.train.preflight import RunStart
from pipelines.train.replay import replay
from pipelines.train.run import Launch, TrainResult, train
from pipelines.train.trial_views import show_overfit, show_plan, show_replay
from sparse_detr.redaction import without_secrets


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
    with kept_aside(say), TrainDisplay() as display, going_on_named():
        result = train(
            config,
            on_start=lambda start: display.say(start.describe()),
            on_progress=display.report,
            on_notice=display.say,
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


@contextmanager
def going_on_named() -> Iterator[None]:
    """Add to the end of a training that was stopped how it goes on."""
    try:
        yield
    except Interrupted as stop:
        raise Interrupted(f"{stop} It goes on with\n  {resuming(sys.argv[1:])}", stop.number) from None


def resuming(words: Sequence[str]) -> str:
    """The command of these words (behind `sparse-detr`) that goes on with its run, without passwords."""
    kept = [word for before, word in zip(("", *words), words, strict=False) if "--existing" not in (before, word)]
    kept = [without_secrets(word) for word in kept if not word.startswith("--existing=")]
    return shlex.join(["sparse-detr", *kept, "--existing", "resume"])


def _start_rows(start: RunStart) -> dict[str, object]:
    rows: dict[str, object] = {"boxes left out": len(start.data.dropped)}
    return rows if start.weights is None else rows | {"starting weights": start.weights.describe()}


def _run_rows(result: TrainResult) -> dict[str, object]:
    rows = {"MLflow run": result.run_id, "registered model": result.registered}
    return {name: value for name, value in rows.items() if value}
