"""Signs of life of a worker, and what it is asked for, between the thread that trains and the process around it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

Phase = Literal["starting", "training", "evaluating", "storing"]
UNLIMITED: tuple[Phase, ...] = ("starting", "storing")
"""Silence of the training thread is no fault in these: a start may compile and download, and a store that is away is
waited for, by one worker, and by the others for that one."""

Leave = Literal["stop", "preemption", "resize"]
"""Why a training is to end, with a checkpoint: the user wants it, a node is about to go, or another has come."""


class LeftError(Exception):
    """Raised by every worker once a checkpoint is written, so that others go on from there; its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What a worker was last seen doing."""

    phase: Phase
    step: int
    """Steps that were complete."""
    seconds: float
    """Since then."""
    longest: float = 0.0
    """Longest time between two signs so far: some steps take minutes."""


class Pulse:
    """Written by the thread that trains, read by another; both at any time."""

    def __init__(self) -> None:
        self._last: tuple[Phase, int, float] = ("starting", 0, time.monotonic())
        self._longest = 0.0
        self.asked: Leave | None = None
        """What the training is to do at the next step."""

    def beat(self, phase: Phase, step: int | None = None) -> None:
        """Say that the thread lives and what it does; without a step, that of before."""
        before, last_step, at = self._last
        now = time.monotonic()
        if before not in UNLIMITED:
            self._longest = max(self._longest, now - at)
        self._last = (phase, last_step if step is None else step, now)

    def sign(self) -> Sign:
        """The last beat."""
        phase, step, at = self._last
        return Sign(phase=phase, step=step, seconds=time.monotonic() - at, longest=self._longest)


PULSE = Pulse()
"""Of this process, which is one worker. Calls into it from outside find no other object of the training."""


def read_pulse() -> Sign:
    """The sign of the process that this is called in."""
    return PULSE.sign()


def ask(what: Leave) -> None:
    """Ask the process that this is called in; "stop" outweighs what else it was asked."""
    if PULSE.asked != "stop":
        PULSE.asked = what
