"""Number of times that a block of images was begun: a worker that dies tells nobody what it was at, with one exception:
that an image, alone in its batch, made its GPU fail.

Workers ask the one actor of a run before they touch a block. It is on the driver's node, so it lives as long as the
driver; what a driver forgets by its death costs one more worker.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Hashable
from typing import Any

MOST = 5
"""Attempts at a block. The first dies of a bad image, the second finds it; the third runs one image at a time, where
memory was short; two more for workers that are killed for reasons that have nothing to do with the block."""


class Attempts:
    """Counts the beginnings of each block that is not done."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()
        self._blamed: dict[Hashable, dict[int, list[str]]] = {}

    def begin(self, block: Hashable) -> int:
        """Number of the attempt that begins now, from 1."""
        self._begun[block] += 1
        return self._begun[block]

    def blame(self, block: Hashable, image: int, message: str) -> None:
        """Note that an image, alone in its batch, is why the worker ends now.

        The next attempt is the third again, which runs image by image: each one finds another such image, if there is.
        """
        self._blamed.setdefault(block, {}).setdefault(image, []).append(message)
        self._begun[block] = min(self._begun[block], 2)

    def culprits(self, block: Hashable) -> dict[int, str]:
        """The images that were blamed again, with the last message: once may be chance."""
        return {image: said[-1] for image, said in self._blamed.get(block, {}).items() if len(said) > 1}

    def done(self, block: Hashable) -> None:
        """Forget the block."""
        self._begun.pop(block, None)
        self._blamed.pop(block, None)


def start_attempts() -> Any:
    """The actor of a run, on this process's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts)
        .options(scheduling_strategy=here)
        .remote()
    )


class AttemptsOfEach:
    """Handle of `Attempts` for a Ray Dataset, which may be executed many times, and cut short each time by `take`.

    A block that was cut short has ended no worker, so each execution counts for itself: Ray pickles the workers'
    arguments once for each, and the copy bears a number of its own.
    """

    def __init__(self, actor: Any, execution: str = "") -> None:
        """Handle of this actor, for one execution."""
        self._actor = actor
        self.begin = _OfExecution(actor.begin, execution)
        self.blame = _OfExecution(actor.blame, execution)
        self.culprits = _OfExecution(actor.culprits, execution)
        self.done = _OfExecution(actor.done, execution)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._actor, secrets.token_hex(8))


class _OfExecution:
    """A method of the actor, called with the execution beside the block."""

    def __init__(self, method: Any, execution: str) -> None:
        self._method = method
        self._execution = execution

    def remote(self, block: int, *more: Any) -> Any:
        return self._method.remote((self._execution, block), *more)
