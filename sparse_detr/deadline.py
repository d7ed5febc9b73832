"""Work with a deadline: it runs in a thread beside the caller's, which waits for so long and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`, or what it raised. Work that is late goes on in its thread, which ends with the process.

    Raises:
        TimeoutError: no result after `seconds`.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    # Not a pool: at exit the interpreter waits for a pool's threads, and so for a store that never answers.
    threading.Thread(target=run, name="deadline", daemon=True).start()
    wait([outcome], seconds)
    if not outcome.done():
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return outcome.result()
