"""Progress of a sweep, for a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.tune


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepProgress:
    """Position of a sweep."""

    finished: int
    """Trials that are over, the broken ones included."""
    trials: int
    """Trials of the whole sweep."""
    epochs_done: int
    """Epochs that are complete, over all trials."""
    epochs: int
    """Epochs of the whole sweep."""


OnSweepProgress = Callable[[SweepProgress], None]


class SweepCallback(ray.tune.Callback):
    """Counts what Tune reports, in the driver."""

    def __init__(self, trials: int, epochs_per_trial: int, on_progress: OnSweepProgress | None) -> None:
        self._trials, self._epochs_per_trial = trials, epochs_per_trial
        self._on_progress = on_progress
        self._finished = 0
        self._epochs: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks with the sweep's state; whoever watches stays out of it."""
        return {**self.__dict__, "_on_progress": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch of a trial is complete."""
        self._epochs[trial.trial_id] = int(result.get("training_iteration", 0))
        self._tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial is over."""
        self._over(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial broke."""
        self._over(trial)

    def _over(self, trial: Any) -> None:
        self._finished += 1
        self._epochs[trial.trial_id] = self._epochs_per_trial
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(
                SweepProgress(
                    finished=self._finished,
                    trials=self._trials,
                    epochs_done=sum(self._epochs.values()),
                    epochs=self._trials * self._epochs_per_trial,
                )
            )
