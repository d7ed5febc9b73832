"""Measures the op's implementations: round by round, so that what else the machine does meets all alike."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pipelines.bench.op.clock import Clock, EventClock, Plan, Run, WallClock
from pipelines.bench.op.config import OpBenchConfig
from pipelines.bench.op.implementations import (
    PLAIN,
    TYPES,
    Attend,
    Field,
    Inputs,
    Workload,
    line_up,
    make_inputs,
    traffic,
)

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One row: an implementation at one size. All ratios are how many times as fast it is, within this run."""

    queries: str
    backward: bool
    """Whether forward and backward together; otherwise the forward alone."""
    implementation: str
    dtype: str
    threads: int | None
    """None on a GPU."""
    milliseconds: float
    """Median."""
    fastest: float
    """Least, milliseconds."""
    floor: float
    """Milliseconds that the bytes take at the speed of a copy, measured in the same run with as many threads."""
    bytes: int
    """Bytes that cannot but be moved, in this type; see `traffic`."""
    ratio: float
    """The baseline's median over this one's, with as many threads."""
    fastest_ratio: float
    """The baseline's fastest over this one's."""
    plain_ratio: float
    """The median of our plain torch over this one's."""
    threads_ratio: float | None
    """This implementation's median with the first number of threads over that with this one; None for the first."""
    floor_share: float
    """The floor over the median: 1 is as fast as a copy."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    threads: int | None
    implementation: str
    dtype: str
    run: Run
    plan: Plan = field(default_factory=Plan)
    times: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A benchmark that is ready to run: implementations, inputs, clock."""

    config: OpBenchConfig
    workload: Workload
    field: Field
    device: torch.device
    clock: Clock
    cache_bytes: int
    """Of the GPU's L2: inputs take turns, so that none is found there. 0 on a CPU, where a model finds them, too."""

    @property
    def threads(self) -> tuple[int | None, ...]:
        """Numbers of threads, in rising order of the rows."""
        return (None,) if self.device.type == "cuda" else tuple(dict.fromkeys(self.config.threads))

    def rows(self, say: Say) -> Iterator[Timing]:
        """Measure; rows come case by case. `say` is told what is being done."""
        before = torch.get_num_threads()
        try:
            say("copying, for the floor")
            speeds = {threads: self._copy_speed(threads) for threads in self.threads}
            for name in dict.fromkeys(self.config.queries):
                for backward in (False, True):
                    inputs = make_inputs(self.workload, self.workload.queries[name])
                    entries = list(self._entries(inputs, backward))
                    self._measure(entries, say, _case(name, backward))
                    for entry in entries:
                        size = traffic(self.workload, inputs, TYPES[entry.dtype], backward)
                        yield self._row(entry, entries, (name, backward), size, speeds[entry.threads])
        finally:
            torch.set_num_threads(before)

    def _copy_speed(self, threads: int | None) -> float:
        """Bytes a second, read and written: the best of several copies, too large for caches."""
        self._use(threads)
        source = torch.zeros(max(1 << 24, self.cache_bytes), device=self.device)
        target = torch.empty_like(source)

        def copy() -> object:
            return target.copy_(source)

        plan = self.clock.warm_up(copy)
        return 2 * source.nbytes / min(self.clock.milliseconds(copy, plan) for _ in range(7)) * 1e3

    def _entries(self, inputs: Inputs, backward: bool) -> Iterator[_Entry]:
        turns: dict[str, Iterator[Inputs]] = {}
        for threads in self.threads:
            for implementation in self.field.implementations:
                for kind in dict.fromkeys(implementation.types or self.config.resolved_types):
                    if kind not in turns:
                        turns[kind] = itertools.cycle(self._copies(inputs, kind, backward))
                    run = _run(implementation.attend, turns[kind], backward)
                    yield _Entry(threads=threads, implementation=implementation.name, dtype=kind, run=run)

    def _copies(self, inputs: Inputs, kind: str, backward: bool) -> list[Inputs]:
        first = inputs.copied(TYPES[kind], self.device, backward)
        further = copies_beyond(self.cache_bytes, first.bytes) - 1
        return [first, *(inputs.copied(TYPES[kind], self.device, backward) for _ in range(further))]

    def _measure(self, entries: Sequence[_Entry], say: Say, case: str) -> None:
        for turn in range(self.config.repeats + 1):
            for threads, group in itertools.groupby(entries, key=lambda entry: entry.threads):
                self._use(threads)
                for entry in _from(turn, list(group)):
                    count = "warming up" if turn == 0 else f"round {turn} of {self.config.repeats}"
                    say(f"{case}, {count}: {entry.implementation} {entry.dtype}")
                    if turn == 0:
                        entry.plan = self.clock.warm_up(entry.run)
                    else:
                        entry.times.append(self.clock.milliseconds(entry.run, entry.plan))

    def _use(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
            torch.zeros(1 << 17).add_(1)  # starts them

    def _row(self, entry: _Entry, entries: Sequence[_Entry], case: tuple[str, bool], size: int, speed: float) -> Timing:
        beside = {
            other.implementation: other
            for other in entries
            if (other.threads, other.dtype) == (entry.threads, "float32")
        }
        baseline, plain, floor = beside[self.field.baseline], beside[PLAIN], size / speed * 1e3
        first = next(o for o in entries if (o.implementation, o.dtype) == (entry.implementation, entry.dtype))
        return Timing(
            queries=case[0],
            backward=case[1],
            implementation=entry.implementation,
            dtype=entry.dtype,
            threads=entry.threads,
            milliseconds=entry.median,
            fastest=min(entry.times),
            floor=floor,
            bytes=size,
            ratio=baseline.median / entry.median,
            fastest_ratio=min(baseline.times) / min(entry.times),
            plain_ratio=plain.median / entry.median,
            threads_ratio=None if first is entry else first.median / entry.median,
            floor_share=floor / entry.median,
        )


def _from(turn: int, entries: list[_Entry]) -> list[_Entry]:
    """Another one begins in each round: the first finds the least in the processor's cache."""
    start = turn % len(entries)
    return entries[start:] + entries[:start]


def open_bench(config: OpBenchConfig, workload: Workload) -> Bench:
    """All that is needed to measure on the device.

    Raises:
        RuntimeError: the im2col kernel does not compute what plain torch computes.
    """
    device = config.torch_device()
    gpu = device.type == "cuda"
    return Bench(
        config=config,
        workload=workload,
        field=line_up(workload, device),
        device=device,
        clock=EventClock() if gpu else WallClock(),
        cache_bytes=torch.cuda.get_device_properties(device).L2_cache_size if gpu else 0,
    )


def copies_beyond(cache_bytes: int, bytes_each: int) -> int:
    """Copies of the inputs that together exceed twice the cache: a copy's turn comes when it is long evicted."""
    return 2 * cache_bytes // bytes_each + 1


def _case(name: str, backward: bool) -> str:
    return f"{name} {'forward and backward' if backward else 'forward'}"


def _run(attend: Attend, turns: Iterator[Inputs], backward: bool) -> Run:
    def forward() -> object:
        with torch.no_grad():
            return attend(next(turns))

    def both() -> object:
        inputs = next(turns)
        return torch.autograd.grad(attend(inputs), inputs.leaves, inputs.direction)

    return both if backward else forward
