"""What workers and their controller tell the driver, and the box in which it waits to be fetched.

This module stays light: the box's process imports it and nothing heavy.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from pipelines.train.engine.progress import StepProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Workers have begun to train."""

    workers: int
    step: int
    """Steps that are behind them: those of the checkpoint that they go on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """There is room for workers, and they start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """A step is complete."""

    step: int
    """Steps that are complete."""


Kind = Literal["failure", "hang", "preemption", "resize", "driver"]
"""Why workers ended that were not done: one of them failed or hung, its node was to go, other workers take over, or
the command itself came to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The workers are no longer there, and others will follow or the run is over."""

    kind: Kind
    cause: str
    """One line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent:
    """A worker gives no sign of life, or does so again."""

    worker: str
    """Rank, process and node."""
    seconds: float
    """Since the last sign; 0 where it is back."""
    step: int
    """Steps that were complete then."""


Fact = Placed | Begun | StepDone | Ended | Silent | StepProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the box gives out."""

    box: str
    """Which box: one that was started anew knows nothing of the one before."""
    count: int
    """Facts that this box has ever taken in."""
    facts: tuple[tuple[float, Fact], ...]
    """The newer ones, each with the time (Unix seconds) at which it came in."""


class NewsBox:
    """Run as a Ray actor on the driver's node. Nobody waits for it but the driver, and that not for long."""

    SIZE = 20_000
    """Facts kept for a driver that does not come."""

    def __init__(self) -> None:
        self._name = secrets.token_hex(8)
        self._facts: deque[tuple[float, Fact]] = deque(maxlen=self.SIZE)
        self._count = 0
        self._stop = False

    def put(self, fact: Fact) -> None:
        """Take in a fact."""
        self._facts.append((time.time(), fact))
        self._count += 1

    def news(self, box: str, count: int) -> News:
        """What came in since the driver saw `count` facts of the box of that name."""
        new = min(self._count - (count if box == self._name else 0), len(self._facts))
        while len(self._facts) > new:
            self._facts.popleft()
        return News(box=self._name, count=self._count, facts=tuple(self._facts))

    def ask_to_stop(self) -> None:
        """Note that the user wants the training to end."""
        self._stop = True

    def stop_asked(self) -> bool:
        """Whether that was noted."""
        return self._stop
