"""Clocks for one run: by the wall on a CPU, by events on a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Run = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Plan for the timing of one run."""

    launches: int = 1
    """Runs in a timing, whose mean is taken."""
    delay: int = 0
    """Cycles that the GPU is kept busy before, so that the processor is never behind it."""


class WallClock:
    """For a CPU, which has computed when a call returns."""

    def warm_up(self, run: Run) -> Plan:
        """Run it once."""
        run()
        return Plan()

    def milliseconds(self, run: Run, plan: Plan) -> float:
        """Of one run."""
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1e3


class EventClock:
    """For a GPU: the time between two events around some launches that follow each other without a gap.

    Python takes longer to launch a kernel of microseconds than the GPU to run it. So the GPU spins first, while
    the launches gather in its queue: what is then between the events is the GPU's time alone. A run that waits for the
    GPU itself (a copy from the host's memory, say) also counts what the GPU waits for it.
    """

    FILL_MS, MOST_LAUNCHES = 1.0, 10  # hundreds of kernels at most: the queue holds about a thousand

    def __init__(self) -> None:
        self._cycles_a_ms = 1e6
        for _ in range(2):  # the first wakes the GPU up
            self._cycles_a_ms /= self.milliseconds(self._spin_a_ms, Plan())

    def _spin_a_ms(self) -> None:
        torch.cuda._sleep(int(self._cycles_a_ms))  # type: ignore[no-untyped-call]

    def warm_up(self, run: Run) -> Plan:
        """Run it a few times; short runs get several launches, and a delay of twice what the processor takes."""
        run()
        alone = self.milliseconds(run, Plan(delay=int(self._cycles_a_ms)))
        launches = max(1, min(self.MOST_LAUNCHES, math.ceil(self.FILL_MS / max(alone, 1e-3))))
        begin = time.perf_counter()
        for _ in range(launches):
            run()
        queued = (time.perf_counter() - begin) * 1e3
        torch.cuda.synchronize()
        return Plan(launches=launches, delay=int(2 * queued * self._cycles_a_ms))

    def milliseconds(self, run: Run, plan: Plan) -> float:
        """Mean of one timing's launches."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if plan.delay:
            torch.cuda._sleep(plan.delay)  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(plan.launches):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / plan.launches


Clock = WallClock | EventClock
