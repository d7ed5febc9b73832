"""A bar for each step of the demo, and the time that it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from pipelines.demo.report import Step, duration


class Bar:
    """The bar of the step that runs."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self.note = ""
        """The outcome of the step; stays beside its bar."""

    def move(self, done: float, total: float, note: str = "") -> None:
        """Show how far the step is."""
        self._progress.update(self._task, completed=done, total=total or None, note=escape(note))


class Steps:
    """The steps of a run, in order; on a terminal with moving bars, elsewhere with a line at start and end of each."""

    def __init__(self, console: Console, count: int) -> None:
        self._console, self._count = console, count
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._done: list[Step] = []

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    @property
    def done(self) -> tuple[Step, ...]:
        """The steps so far."""
        return tuple(self._done)

    @contextmanager
    def step(self, name: str) -> Iterator[Bar]:
        """Time what happens inside; a step that fails is not among the done ones."""
        number = len(self._done) + 1
        title = f"{number}/{self._count} {name}"
        task = self._progress.add_task(title.ljust(26), total=None, note="")
        bar = Bar(self._progress, task)
        self._say(f"{title} ...")
        started = time.monotonic()
        yield bar
        seconds = time.monotonic() - started
        self._progress.update(task, completed=1, total=1, note=escape(bar.note))
        self._progress.stop_task(task)
        self._done.append(Step(name=name, seconds=seconds, note=bar.note))
        self._say(f"{title}: {duration(seconds)}{', ' + bar.note if bar.note else ''}")

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
