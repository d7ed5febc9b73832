"""How fast a training goes: images a second, the share of the time that it waits for data, and memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")

_STEPS = 20
"""Over so many steps the pace is taken: enough to be calm, and soon true again after an evaluation."""
_MIB = 1 << 20


class Pace:
    """Counts the steps of one rank; all ranks go at the same pace, as each step waits for all of them.

    Args:
        images: of a step, over all ranks.
        device: whose memory is told.
        clock: in seconds.
    """

    def __init__(self, images: int, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._images, self._device, self._clock = images, device, clock
        self._steps: deque[tuple[float, float]] = deque(maxlen=_STEPS)
        self.waited = 0.0
        """Seconds that this epoch has waited for data."""

    def begin(self) -> None:
        """Of an epoch, or of the rest of one."""
        self._steps.clear()
        self.waited = 0.0

    def steps(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each of them is there is the wait, the rest is the step."""
        source = iter(batches)
        while True:
            began = self._clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            wait = self._clock() - began
            self.waited += wait
            yield batch
            self._steps.append((self._clock() - began, wait))

    def numbers(self) -> dict[str, float]:
        """`images_per_second`, `data_wait` (share of the time) of the last steps, and `memory_mib`: of the device's
        allocator at its peak, or of this process."""
        seconds = sum(step for step, _ in self._steps)
        found = {"memory_mib": self._memory()}
        if seconds > 0:
            found["images_per_second"] = len(self._steps) * self._images / seconds
            found["data_wait"] = sum(wait for _, wait in self._steps) / seconds
        return found

    def _memory(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / _MIB
        return float(psutil.Process().memory_info().rss) / _MIB
