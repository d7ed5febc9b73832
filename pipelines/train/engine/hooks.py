"""What a training loop tells, and what it can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipelines.train.engine.batches import RunData
from pipelines.train.engine.broken_images import BrokenImages
from pipelines.train.engine.checkpoint import Snapshot
from pipelines.train.engine.progress import StepProgress
from sparse_detr.detector import SparseDetr


class Trained(Protocol):
    """What hooks may see and take of a loop after an epoch: see `TrainLoop`."""

    @property
    def data(self) -> RunData: ...

    @property
    def broken(self) -> BrokenImages: ...

    @property
    def eval_model(self) -> SparseDetr: ...

    def snapshot(self) -> Snapshot: ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Wishes of one rank, to be fulfilled by all after the step that follows."""

    checkpoint: bool = False
    stop: bool = False
    """End the run, with a checkpoint."""


class TrainHooks(Protocol):
    """Receives the news of a loop."""

    def requests(self, step: int) -> Requests:
        """Before every step (counted from 0 over the run), on every rank; what one of them asks for, all do."""

    def step_done(self, progress: Callable[[], StepProgress]) -> None:
        """After every step, on every rank; must be quick: to call `progress` waits for the device."""

    def evaluating(self) -> None:
        """Now and then while the validation images pass the model, on every rank."""

    def checkpoint(self, snapshot: Snapshot) -> None:
        """After a step for which a checkpoint was asked, on rank 0 alone."""

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        """After every epoch and its evaluation, on every rank; may take a snapshot."""


class NoHooks:
    """Tells nobody and asks for nothing; a base for those that want some of the news."""

    def requests(self, step: int) -> Requests:
        """Nothing."""
        return Requests()

    def step_done(self, progress: Callable[[], StepProgress]) -> None:
        """Nothing."""

    def evaluating(self) -> None:
        """Nothing."""

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        """Nothing."""
