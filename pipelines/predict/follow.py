"""A run while it goes on: parts are counted as workers write them, and it stops where it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.detect.workers import Progress, Rows
from pipelines.predict.budget import ErrorBudget
from pipelines.predict.config import PredictConfig
from pipelines.predict.parts import SHOWN_ERRORS, Part
from pipelines.predict.resume import Journal, gaps
from sparse_detr.errors import ErrorBudgetError, IncompleteError, StorageError
from sparse_detr.storage.lease import Lease

Run = Callable[[Sequence[pa.Table]], Rows]
"""Starts the workers on tasks and gives the summaries of their blocks as they come."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Parts that are written so far, by their first row, and what was left undone.

    The budget counts this session's: what an earlier one left may be what this one is to do again.
    """

    total: int
    parts: dict[int, Part]
    undone: list[str] = field(default_factory=list)
    """Why blocks were left undone since the last one that was written."""
    reason: str = ""
    """Of the first block that was left undone."""
    sample: list[str] = field(default_factory=list)
    """First images that failed, with the reason."""
    images: int = field(default=0, init=False)
    errors: int = field(default=0, init=False)
    new: set[int] = field(default_factory=set, init=False)
    """First rows of the parts that this session wrote."""
    new_images: int = field(default=0, init=False)
    new_errors: int = field(default=0, init=False)
    tasks: int = field(default=0, init=False)
    """Tasks that are done in this session, as are the new images and errors."""

    def __post_init__(self) -> None:
        # Counted once, and then as parts come: a run has up to 156 000 of them.
        self.images = sum(part.rows for part in self.parts.values())
        self.errors = sum(part.errors for part in self.parts.values())

    def add(self, part: Part) -> None:
        """Count a part, in place of one with the same first row."""
        self.new.add(part.first)
        self.new_images += part.rows
        self.new_errors += part.errors
        before = self.parts.get(part.first)
        self.images += part.rows - (before.rows if before else 0)
        self.errors += part.errors - (before.errors if before else 0)
        self.parts[part.first] = part

    def sorted(self) -> list[Part]:
        """The parts in the order of the manifest."""
        return [self.parts[first] for first in sorted(self.parts)]


def follow(
    run: Run,
    tasks: Sequence[pa.Table],
    tally: Tally,
    journal: Journal,
    *,
    config: PredictConfig,
    lease: Lease,
    workers: int,
    on_progress: Progress | None,
) -> None:
    """Note the parts as they are written; stop the workers when too many images fail, or the store stays away.

    Where Ray itself gives up, it is started again on what is left, as long as parts are written in between: the node
    that died may have had actors that Ray Data keeps for all jobs of a cluster, on the node of the first one's driver.

    Raises:
        ErrorBudgetError: more images failed than allowed, or will.
        OutputExistsError: another job took the output over.
    """
    # Imported late: ray_session sets what Ray reads from the environment when it is imported.
    from ray.exceptions import RayError, RayTaskError

    def goes_on() -> bool:
        lease.check()
        if on_progress is not None:
            on_progress(tally.images, tally.total)
        _keep_budget(config, tally)
        # Otherwise all workers in turn found the store away, and each has waited for it.
        return len(tally.undone) <= 2 * workers

    try:
        while tasks:
            written = len(tally.new)
            try:
                return _take(run(tasks), tally, journal, goes_on)
            except RayError as error:
                # The former is what our own code raised in a worker.
                if isinstance(error, RayTaskError) or len(tally.new) == written:
                    raise
                tasks = _rest(tasks, tally)
    finally:
        with suppress(StorageError):
            journal.flush()


def _take(summaries: Rows, tally: Tally, journal: Journal, goes_on: Callable[[], bool]) -> None:
    with closing(summaries):
        for table in summaries:
            for row in table.to_pylist():
                _note(row, tally, journal)
            tally.tasks += 1
            if not goes_on():
                return


def _rest(tasks: Sequence[pa.Table], tally: Tally) -> list[pa.Table]:
    """What of the tasks is not written yet."""
    written = pa.array(tally.new, pa.int64())
    left = (task.filter(pc.invert(pc.is_in(task.column("first"), value_set=written))) for task in tasks)
    return [task for task in left if task.num_rows]


def _note(row: Mapping[str, Any], tally: Tally, journal: Journal) -> None:
    if row["undone"] is not None:
        tally.undone.append(row["undone"])
        tally.reason = tally.reason or row["undone"]
        return
    part = Part(**{field.name: row[field.name] for field in fields(Part)})
    tally.add(part)
    tally.undone.clear()
    shown = [f"{error['uri']}: {error['message']}" for error in row["sample"]]
    tally.sample += shown[: SHOWN_ERRORS - len(tally.sample)]
    journal.add(part)


def _keep_budget(config: PredictConfig, tally: Tally) -> None:
    budget = ErrorBudget.parse(config.error_budget)
    errors, images = tally.new_errors, tally.new_images
    # Of an earlier session only what cannot get better counts: a run that retries errors starts from none.
    old = 0 if config.retry_errors else tally.errors - errors
    soon = budget.exceeded(errors, images, tally.total, tally.tasks)
    if not soon and not budget.exceeded(errors + old, 0, tally.total, 0):
        return
    raise ErrorBudgetError(
        f"error_budget: {budget.text} is exceeded, or will be: {errors} of the {images} images of this session failed "
        f"({tally.total} in all); first: {'; '.join(tally.sample[:3])}; the rows so far are in {config.output}; "
        "fix the images and add --retry-errors, or raise error_budget: the same command goes on"
    )


def require_whole(tally: Tally, tasks: Sequence[pa.Table]) -> None:
    """Raise IncompleteError unless every image is done, and done again where the tasks say so."""
    missing = sum(last - first + 1 for first, last in gaps(tally.sorted(), tally.total))
    for task in _rest(tasks, tally):
        again = task.filter(task.column("redo")).column("first").to_pylist()
        missing += sum(tally.parts[first].errors for first in again)
    if missing:
        raise IncompleteError(
            f"{missing} of {tally.total} images are not done: {tally.reason or 'their workers gave no answer'}"
        )
