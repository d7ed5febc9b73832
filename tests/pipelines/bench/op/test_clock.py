"""The clock for GPUs, on one that is made up: how runs are launched, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.bench.op.clock import EventClock, Plan


class Gpu:
    """The part of torch.cuda that EventClock asks, on a GPU whose time passes only while it works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.spins: list[int] = []

    def spin(self, cycles: int) -> None:
        self.spins.append(cycles)
        self.now += cycles / 2e6

    def event(self, enable_timing: bool) -> Gpu.Event:
        assert enable_timing
        return Gpu.Event(self)

    class Event:
        def __init__(self, gpu: Gpu) -> None:
            self.gpu = gpu

        def record(self) -> None:
            self.at = self.gpu.now

        def synchronize(self) -> None:
            """Nothing is behind."""

        def elapsed_time(self, end: Gpu.Event) -> float:
            return end.at - self.at


@pytest.mark.parametrize(("work", "launches"), [(0.02, 10), (0.4, 3), (7.0, 1)])
def test_short_runs_are_launched_several_times_behind_a_delay(
    monkeypatch: pytest.MonkeyPatch, work: float, launches: int
) -> None:
    gpu, runs = Gpu(), []
    monkeypatch.setattr("torch.cuda._sleep", gpu.spin)
    monkeypatch.setattr("torch.cuda.Event", gpu.event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)

    def one() -> None:
        runs.append(work)
        gpu.now += work

    clock = EventClock()
    plan = clock.warm_up(one)
    assert plan.launches == launches
    assert plan.delay > 0
    runs.clear()
    # The spinning before is not counted.
    assert clock.milliseconds(one, replace(plan, delay=2_000_000)) == pytest.approx(work)
    assert (len(runs), gpu.spins[-1]) == (launches, 2_000_000)
    assert clock.milliseconds(one, Plan()) == pytest.approx(work)
