"""Progress of a training, sent from a worker to the driver without making the worker wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """Position of a training; cheap to send."""

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
OnNotice = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """Who wants to hear of a training while it runs; both are called in another thread than `train`."""

    on_progress: OnProgress | None = None
    """About three times a second."""
    on_notice: OnNotice | None = None
    """Now and then, with a line for the user."""
