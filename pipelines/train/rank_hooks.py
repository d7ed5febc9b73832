"""What the ranks of a training tell while they train: that they live, and the first how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray

from pipelines.tracking.tracker import Tracker
from pipelines.train.engine.checkpoint import Snapshot
from pipelines.train.engine.checkpointer import Checkpointer
from pipelines.train.engine.hooks import NoHooks, Requests, Trained, TrainHooks
from pipelines.train.engine.news import Fact, StepDone
from pipelines.train.engine.progress import StepProgress
from pipelines.train.engine.pulse import PULSE

POST_SECONDS = 0.5
"""Least time between two posts to the driver: each makes the device wait once, and the bar needs no more."""
CURVE_SECONDS = 10.0
"""Least time between two points of the curves over steps in MLflow: a call takes about 0.13 s on a busy server."""


def tell(box: Any, fact: Fact) -> None:
    """Put a fact into the `NewsBox`; nobody waits for it, and one that is gone or too busy is no fault."""
    with suppress(ray.exceptions.RayError):
        box.put.remote(fact)


class RankHooks(NoHooks):
    """Signs of life of a rank, and the wish to end that came from outside."""

    def requests(self, step: int) -> Requests:
        """Ask for the end if the process was asked for it."""
        PULSE.beat("training", step)
        return Requests(stop=PULSE.asked is not None)

    def evaluating(self) -> None:
        """Live."""
        PULSE.beat("evaluating")

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        """Live."""
        PULSE.beat("training", progress.step)


class FirstRankHooks(RankHooks):
    """Tells the driver and MLflow how far the loop is, and lets its checkpoints be written."""

    def __init__(
        self, box: Any, tracker: Tracker, checkpoints: Checkpointer, reports: Sequence[TrainHooks] = ()
    ) -> None:
        """Take the box of the driver, the run, the writer of checkpoints, and who else reports after an epoch."""
        self._box = box
        self._tracker = tracker
        self._checkpoints = checkpoints
        self._reports = reports
        self._posted = self._drawn = 0.0

    def requests(self, step: int) -> Requests:
        """Ask for a checkpoint too, when it is time."""
        if step:
            tell(self._box, StepDone(step=step))
        return Requests(checkpoint=self._checkpoints.due(step), stop=super().requests(step).stop)

    def step_done(self, progress: Callable[[], StepProgress]) -> None:
        """Post to the driver now and then; only such a step waits for the device, and none for the driver."""
        now = time.monotonic()
        if now - self._posted < POST_SECONDS:
            return
        self._posted = now
        found = progress()
        tell(self._box, found)
        if now - self._drawn >= CURVE_SECONDS:
            self._drawn = now
            self._tracker.metrics({f"step_{name}": value for name, value in found.metrics.items()}, found.step)

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Begin to write it."""
        self._take(snapshot)

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        """Post, log, begin to write a checkpoint, draw."""
        super().epoch_done(loop, progress)
        tell(self._box, progress)
        tell(self._box, StepDone(step=progress.step))
        # What follows may wait for MLflow and its store for minutes, which is no reason to restart.
        PULSE.beat("storing")
        self._tracker.metrics(progress.metrics, progress.epoch)
        self._take(loop.snapshot())
        PULSE.beat("storing")
        for report in self._reports:
            report.epoch_done(loop, progress)
        PULSE.beat("training")

    def _take(self, snapshot: Snapshot) -> None:
        PULSE.beat("storing")  # the one before may be on its way
        self._checkpoints.take(snapshot)
        PULSE.beat("training")
