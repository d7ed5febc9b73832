"""Eyes of the controller on the workers of a training: whether they live, and what they are to be asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from pipelines.train.engine.news import Placed, Silent
from pipelines.train.engine.pulse import UNLIMITED, Leave, Sign, ask, read_pulse
from pipelines.train.policies import HungError
from pipelines.train.rank_hooks import tell

LOOK_SECONDS = 1.0
"""Between two looks at the workers."""
SILENT_SECONDS = 30.0
"""A worker that is silent for longer is named; where its steps take long, for three times the longest."""


@dataclass(slots=True)
class _Watched:
    """A worker, and the question that it has not yet answered."""

    worker: Any
    sign: Sign = field(default_factory=lambda: Sign(phase="starting", step=0, seconds=0.0))
    seen: float = field(default_factory=time.monotonic)
    """When that sign came."""
    question: Any = None
    asked: float = 0.0
    named: bool = False

    def look(self) -> None:
        """Take in the answer if it is there, and ask again; waits for nothing."""
        now = time.monotonic()
        if self.question is not None:
            ready, _ = ray.wait([self.question], timeout=0)
            if not ready:
                return
            self.question = None
            try:
                self.sign, self.seen = ray.get(ready[0]), now
            except ray.exceptions.RayError:
                return  # it is dead, which Ray sees for itself
        self.question, self.asked = self.worker.execute_async(read_pulse), now

    def silence(self, waits_for_store: bool) -> float:
        """Seconds without a sign of life.

        Args:
            waits_for_store: whether one of the workers is in a phase in which all may be silent; then one that answers
                lives.
        """
        unanswered = time.monotonic() - self.asked if self.question is not None else 0.0
        if waits_for_store:
            return unanswered
        # What was seen ages: a process that stands still does not answer at all.
        return max(unanswered, self.sign.seconds + time.monotonic() - self.seen)

    def describe(self) -> str:
        meta = self.worker.metadata
        return f"worker {self.worker.distributed_context.world_rank} (process {meta.pid} on {meta.node_ip})"


class Supervision(WorkerGroupCallback):
    """Runs in Ray Train's controller; its looks at the workers wait for none of them."""

    def __init__(self, box: Any, hang_minutes: float) -> None:
        """
        Args:
            box: the `NewsBox` actor.
            hang_minutes: `training.hang_minutes`.
        """
        self._box, self._limit = box, 60 * hang_minutes
        self._watched: Sequence[_Watched] = ()
        self._looked = 0.0
        self._stop: Any = None
        self._left = False

    def before_init_train_context(self, workers: Any) -> dict[str, list[Any]]:
        """Say that the workers are there."""
        tell(self._box, Placed())
        return {}

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Begin to watch."""
        self._watched = [_Watched(worker) for worker in worker_group.get_workers()]
        self._stop, self._left = None, False

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Watch no longer."""
        self._watched = ()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Look, some times a second.

        Raises:
            HungError: a worker has been silent for longer than allowed.
        """
        now = time.monotonic()
        if not self._watched or worker_group_status.errors or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if worker_group_status.get_preemption_info() is not None:
            self._ask("preemption")
        if self._stop_is_asked():
            self._ask("stop")
        self._look()

    def _look(self) -> None:
        for each in self._watched:
            each.look()
        waits = any(each.sign.phase in UNLIMITED for each in self._watched)
        silent = [(each.silence(waits), each) for each in self._watched]
        for seconds, each in silent:
            if (seconds > max(SILENT_SECONDS, 3 * each.sign.longest)) != each.named:
                each.named = not each.named
                named = each.describe()
                tell(self._box, Silent(worker=named, seconds=seconds if each.named else 0.0, step=each.sign.step))
        seconds, worst = max(silent, key=lambda pair: pair[0])
        if 0 < self._limit < seconds:
            text = (
                f"{worst.describe()} gave no sign of life for {seconds:.0f} s after step {worst.sign.step}, longer "
                "than training.hang_minutes"
            )
            raise HungError(text, {worst.worker.distributed_context.world_rank: TimeoutError(text)})

    def _stop_is_asked(self) -> bool:
        """Whether the driver was told to stop, as the box said when last asked; waits for nothing."""
        asked = False
        if self._stop is not None:
            ready, _ = ray.wait([self._stop], timeout=0)
            if not ready:
                return False
            try:
                asked = bool(ray.get(ready[0]))
            except ray.exceptions.RayError:
                asked = False
        self._stop = None
        with suppress(ray.exceptions.RayError):  # a box with too many calls waiting; the next look asks again
            self._stop = self._box.stop_asked.remote()
        return asked

    def _ask(self, what: Leave) -> None:
        """The first worker, once; the others learn it from that one."""
        if not self._left or what == "stop":
            self._left = True
            self._watched[0].worker.execute_async(ask, what)
