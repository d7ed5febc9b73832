"""Ctrl-C and SIGTERM: how a command ends by them, and how one gets time to end well."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user, or the system, ended the command."""

    def __init__(self, message: str = "Interrupted.", number: int = signal.SIGINT) -> None:
        """With what to say about it, and the signal."""
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """That of a shell: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class Stop:
    """Whether the end has been asked for."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that did."""


@contextmanager
def patient_stop(seconds: float) -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM is noted alone; a second one, or the end of so many seconds, raises `Interrupted`.
    With 0 seconds the first one does.

    In another thread than the main one, which gets no signals, nothing is changed, nor for a signal that is ignored.
    """
    stop, others = Stop(), signal.getsignal(signal.SIGALRM)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def received(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGALRM and stop.number is None:
            # An alarm of somebody else's, such as a test's limit: no wish to stop.
            if callable(others):
                others(number, frame)
            return
        if stop.number is not None or seconds <= 0:
            raise Interrupted(number=stop.number or number)
        stop.number = number
        signal.setitimer(signal.ITIMER_REAL, seconds)

    taken = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    # Somebody else's alarm, such as that of a test, is set again afterwards.
    alarm = signal.getitimer(signal.ITIMER_REAL)
    previous = {each: signal.signal(each, received) for each in (*taken, signal.SIGALRM)}
    try:
        yield stop
    finally:
        if stop.number is not None:
            signal.setitimer(signal.ITIMER_REAL, *alarm)
        for each, handler in previous.items():
            signal.signal(each, handler)
