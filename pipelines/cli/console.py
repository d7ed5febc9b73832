"""Look of values in a terminal: tables and progress bars of rich. Results go to stdout, everything else to stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_SHOWN = 20
"""Lines of a list that a terminal of 24 rows still shows; MLflow and the results have all."""


def error_console() -> Console:
    """Console of messages and progress."""
    return Console(stderr=True)


def say(text: str) -> None:
    """A message as it is: nothing in it is taken for markup."""
    error_console().print(text, markup=False, highlight=False)


def values_table(title: str, values: Mapping[str, object]) -> Table:
    """Names beside values; numbers to four digits."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(escape(name), f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
    return table


def rows_table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """A column for each name of the first row; the text at the right, as numbers want it."""
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(escape(name), justify="right")
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    return table


def listing(title: str, lines: Sequence[str], *, total: int | None = None) -> str:
    """The first lines of a list of `total` under its title and length; empty for an empty list."""
    if not lines:
        return ""
    total = len(lines) if total is None else total
    more = [f"  ... and {total - min(len(lines), _SHOWN)} more"] if total > min(len(lines), _SHOWN) else []
    return "\n".join([f"{title}: {total}", *(f"  {line}" for line in lines[:_SHOWN]), *more])


@contextmanager
def progress_bar(title: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar that the yielded function moves: `report(done, total)`. Nothing shows before its first move."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console or error_console())
    task = progress.add_task(title, total=None)
    with ExitStack() as shown:

        def move(done: int, total: int) -> None:
            if not progress.live.is_started:
                shown.enter_context(progress)
            progress.update(task, completed=done, total=total)

        yield move
