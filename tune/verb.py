"""What the verb `sweep` of the command line does with its config, and what it shows of the result."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipelines.console import progress_bar, say
from pipelines.ray_session import ray_session
from tune.report import rows
from tune.sweep import SweepConfig, sweep


def sweep_verb(config: SweepConfig) -> int:
    """Run the sweep and show its trials, the best first."""
    with ray_session(), progress_bar("Sweeping") as move:
        result = sweep(
            config,
            on_start=lambda start: say(start.describe()),
            on_progress=lambda progress: move(progress.epochs_done, progress.epochs),
        )
    table = Table(title=f"{len(result.trials)} trials, best first", title_justify="left")
    found = rows(result.trials)
    for name in found[0]:
        table.add_column(name, overflow="fold")
    for row in found:
        table.add_row(*row.values())
    Console().print(table)
    return 0
