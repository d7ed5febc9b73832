"""`sparse-detr sweep`: progress, and the trials as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipelines.cli.console import progress_bar, say
from pipelines.cluster.ray_log import kept_aside
from pipelines.cluster.session import Connect, announced, ray_session
from tune.config import SweepConfig
from tune.report import rows
from tune.sweep import LaunchTrials, fit_trials, sweep


def sweep_command(config: SweepConfig, *, connect: Connect = ray_session, launch: LaunchTrials = fit_trials) -> int:
    """Run the sweep and show its trials, the best first."""
    with kept_aside(say), progress_bar("Sweeping") as move:
        result = sweep(
            config,
            on_start=lambda start: say(start.describe()),
            on_progress=lambda progress: move(progress.epochs_done, progress.epochs),
            connect=announced(say, connect),
            launch=launch,
        )
    table = Table(title=f"{len(result.trials)} trials, best first", title_justify="left")
    found = rows(result.trials)
    for name in found[0]:
        table.add_column(name, overflow="fold")
    for row in found:
        table.add_row(*row.values())
    Console().print(table)
    return 0
