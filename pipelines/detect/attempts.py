"""Number of times that a block of images was begun: a worker that dies tells nobody what it was at.

Workers ask the one actor of a run before they touch a block. It is on the driver's node, so it lives as long as the
driver; what a driver forgets by its death costs one more worker.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

MOST = 5
"""Attempts at a block. The first dies of a bad image, the second finds it; the third runs one image at a time, where
memory was short; two more for workers that are killed for reasons that have nothing to do with the block."""


class Attempts:
    """Counts the beginnings of each block that is not done."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, block: int) -> int:
        """Number of the attempt that begins now, from 1."""
        self._begun[block] += 1
        return self._begun[block]

    def done(self, block: int) -> None:
        """Forget the block."""
        self._begun.pop(block, None)


def start_attempts() -> Any:
    """The actor of a run, on this process's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Attempts).options(scheduling_strategy=here).remote()
