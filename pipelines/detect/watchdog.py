"""Ends a process whose work on one image never ends, as a decoder in C may: its work is then done again, with care."""

from __future__ import annotations

import faulthandler
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 86
"""Exit code of a process that the watchdog ended."""
_TICKS = 6
"""Looks in the time that is allowed: a hang is then noticed at most a sixth of it late."""


class Watchdog:
    """Watches over all work of this process that is marked by `working`.

    A thread looks at the oldest work. It cannot run where a decoder hangs with the interpreter's lock held, so it also
    winds up `faulthandler`'s timer, which needs no lock: when that runs out, the thread has not run for that long.
    """

    def __init__(self, seconds: float) -> None:
        """Start to watch.

        Args:
            seconds: longest work on one image.
        """
        self._seconds = seconds
        self._numbers = itertools.count()
        self._since: dict[int, float] = {}
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def working(self) -> Iterator[None]:
        """The time in which one image is worked on."""
        number = next(self._numbers)
        self._since[number] = time.monotonic()
        try:
            yield
        finally:
            del self._since[number]

    def _watch(self) -> None:
        tick = self._seconds / _TICKS
        while True:
            faulthandler.dump_traceback_later(self._seconds + 2 * tick, exit=True)
            time.sleep(tick)
            oldest = min(list(self._since.values()), default=None)
            if oldest is not None and time.monotonic() - oldest > self._seconds:
                faulthandler.dump_traceback()
                os._exit(EXIT_CODE)
