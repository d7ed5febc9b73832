"""Patience with a store: failures that pass by themselves are waited for, with jitter, others raised at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import stamina

from sparse_detr.errors import StoreUnavailableError

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds that a job waits for a store that is away: a restart or a failover takes one to three minutes."""

START_PATIENCE = 30.0
"""The same before any work is done: the user is still there, and a refused request or two pass within seconds."""

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 15.0
"""Seconds. The client below has tried five times within some seconds before the first of these waits."""


def patiently(work: Callable[..., T], *arguments: Any, seconds: float = PATIENCE) -> T:
    """The result of `work(*arguments)`, which is tried again while the store is unavailable.

    Args:
        work: may run several times.
        seconds: of patience, from the first try to the start of the last; 0 tries once.

    Raises:
        StoreUnavailableError: the store is still unavailable after `seconds`.
    """
    if seconds <= 0:
        return work(*arguments)
    # stamina tells every retry to the terminal, which is the user's.
    logging.getLogger("stamina").setLevel(logging.ERROR)
    for attempt in stamina.retry_context(
        on=StoreUnavailableError,
        attempts=None,
        timeout=seconds,
        wait_initial=_FIRST_WAIT,
        wait_max=_LONGEST_WAIT,
        wait_jitter=1.0,
    ):
        with attempt:
            return work(*arguments)
    raise AssertionError("the last attempt returns or raises")
