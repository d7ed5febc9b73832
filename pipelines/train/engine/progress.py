"""How far a training is, sent from a worker to the driver without making the worker wait.

This module stays light: the board's process imports it and nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """Where a training stands; cheap to send."""

    epoch: int
    """Epochs that are complete."""
    epochs: int
    """Epochs of the whole run."""
    step: int
    """Steps that are complete, over all epochs."""
    steps: int
    """Steps of the whole run."""
    metrics: Mapping[str, float]
    """`loss` and `lr` of this step; after an epoch all of its metrics."""


OnProgress = Callable[[StepProgress], None]


class ProgressBoard:
    """Holds the last progress and the first mistake of the user; run as a Ray actor."""

    def __init__(self) -> None:
        self._progress: StepProgress | None = None
        self._mistake: tuple[str, str] | None = None

    def post(self, progress: StepProgress) -> None:
        """Replace what was posted before."""
        self._progress = progress

    def latest(self) -> StepProgress | None:
        """What was posted last."""
        return self._progress

    def fail(self, kind: str, message: str) -> None:
        """Note an error that a restart would only repeat: the class name and the message."""
        self._mistake = self._mistake or (kind, message)

    def mistake(self) -> tuple[str, str] | None:
        """The first error noted."""
        return self._mistake
