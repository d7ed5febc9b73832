"""A run while it goes on: parts are counted as workers write them, and it stops where it must."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields
from typing import Any

from pipelines.detect.workers import Progress, Rows
from pipelines.predict.budget import ErrorBudget
from pipelines.predict.config import PredictConfig
from pipelines.predict.parts import SHOWN_ERRORS, Part
from pipelines.predict.resume import Journal, gaps
from sparse_detr.errors import ErrorBudgetError, IncompleteError, StorageError
from sparse_detr.storage.lease import Lease


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
    summaries: Rows,
    tally: Tally,
    journal: Journal,
    *,
    config: PredictConfig,
    lease: Lease,
    workers: int,
    on_progress: Progress | None,
) -> None:
    """Note the parts as they are written; stop the workers when too many images fail, or the store stays away.

    Raises:
        ErrorBudgetError: more images failed than allowed, or will.
        OutputExistsError: another job took the output over.
    """
    try:
        with closing(summaries):
            for table in summaries:
                for row in table.to_pylist():
                    _note(row, tally, journal)
                tally.tasks += 1
                lease.check()
                if on_progress is not None:
                    on_progress(tally.images, tally.total)
                _keep_budget(config, tally)
                # All workers in turn found the store away, and each has waited for it.
                if len(tally.undone) > 2 * workers:
                    break
    finally:
        with suppress(StorageError):
            journal.flush()


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


def require_whole(tally: Tally) -> None:
    """Raise IncompleteError unless every image is done."""
    missing = sum(last - first + 1 for first, last in gaps(tally.sorted(), tally.total))
    if missing:
        raise IncompleteError(
            f"{missing} of {tally.total} images are not done: {tally.reason or 'their workers gave no answer'}"
        )
