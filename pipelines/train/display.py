"""A training in the terminal: one bar for what goes on, a row of a table for every epoch.

Where the output is no terminal, as in a log file, there is no bar: a line an epoch, and one now and then in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from pipelines.cli.console import error_console
from pipelines.train.engine.progress import SHOWN_TERMS, StepProgress

_ROW = (
    ("epoch", "epoch", "{:.0f}", 5),
    ("loss", "loss", "{:.3f}", 8),
    ("ap", "AP", "{:.3f}", 6),
    ("ap50", "AP50", "{:.3f}", 6),
    ("ap75", "AP75", "{:.3f}", 6),
    ("lr", "rate", "{:.1e}", 8),
    ("images_per_second", "images/s", "{:.1f}", 9),
    ("data_wait", "waiting", "{:.0%}", 8),
    ("train_seconds", "seconds", "{:.0f}", 8),
)
"""Metric, title, format and width of each column."""
_LINE_SECONDS = 60.0
"""Between two lines within an epoch, where there is no terminal."""


class _Bar(Progress):
    """A bar, and below it a line of numbers, for which the bar's own line has no room on 80 columns."""

    numbers = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Both, as rich draws them."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.numbers)


class TrainDisplay:
    """Shows progress until it is left; `report` may be called from another thread.

    Args:
        console: by default that of the error stream: results alone go to the output.
        clock: in seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or error_console()
        self._clock = clock
        self._live = self._console.is_terminal
        self._bar = _Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=None),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console, expand=True,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._titled = False
        self._rows = 0
        self._spoke = -_LINE_SECONDS

    def __enter__(self) -> TrainDisplay:
        """Show nothing yet: errors before the first step stand alone."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the rows, and take the bar away."""
        if self._task is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar, as it is."""
        self._console.print(text, markup=False, highlight=False)

    def report(self, progress: StepProgress) -> None:
        """Move the bar; after an epoch also print its row."""
        if progress.ends_epoch and progress.epoch > self._rows:
            self._rows = progress.epoch
            self._row(progress.metrics)
        elif self._live:
            self._move(progress)
        elif self._clock() - self._spoke >= _LINE_SECONDS:
            self._spoke = self._clock()
            self.say(f"step {progress.step} of {progress.steps}: {numbers(progress.metrics)}")

    def _row(self, metrics: Mapping[str, float]) -> None:
        if not self._titled:
            self._titled = True
            self.say("".join(f"{title:>{width}}" for _, title, _, width in _ROW))
        cells = (form.format(metrics[name]) if name in metrics else "-" for name, _, form, _ in _ROW)
        self.say("".join(f"{cell:>{width}}" for cell, (_, _, _, width) in zip(cells, _ROW, strict=True)))

    def _move(self, progress: StepProgress) -> None:
        epoch = min(progress.epoch + 1, progress.epochs)
        title = f"Epoch {epoch}/{progress.epochs}  step {progress.step}/{progress.steps}"
        if self._task is None:
            # Time left counts from here: a run that goes on has not done the steps before.
            self._task = self._bar.add_task(title, total=progress.steps, completed=progress.step)
            self._bar.start()
        self._bar.numbers = numbers(progress.metrics)
        self._bar.update(self._task, description=title, completed=progress.step, total=progress.steps)


def numbers(metrics: Mapping[str, float]) -> str:
    """Losses, pace, waiting and memory, as far as they are there."""
    words = []
    if "loss" in metrics:
        terms = ", ".join(f"{title} {metrics[name]:.2f}" for name, title in SHOWN_TERMS.items() if name in metrics)
        words.append(f"loss {metrics['loss']:.3f}" + (f" ({terms})" if terms else ""))
    if "images_per_second" in metrics:
        words.append(f"{metrics['images_per_second']:.1f} images/s")
    if "data_wait" in metrics:
        words.append(f"{metrics['data_wait']:.0%} waiting for data")
    if "memory_mib" in metrics:
        words.append(f"{metrics['memory_mib'] / 1024:.1f} GiB")
    return "  ".join(words)
