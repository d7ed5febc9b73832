"""Runs one server and ends it when its owner is gone. A program of its own: `python -I -S supervisor.py COMMAND...`.

The owner holds the other end of standard input. When that pipe closes (the owner stopped us, or died in any
way, SIGKILL included) or our parent changes, the server's whole process group is terminated, then killed.
It runs in a session of its own, so that Ctrl-C in a terminal reaches the owner alone, which then stops us in order.

Imports nothing but the standard library, so that it starts in milliseconds and holds little memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL. SeaweedFS would take 15 to say goodbye to clients that are gone."""

_POLL = 0.25
"""Seconds between looks at the server: its end is noticed soon, at next to no processor time."""
_PR_SET_PDEATHSIG = 1


def supervise(command: Sequence[str]) -> int:
    """Run the command until it ends or the owner is gone; its exit code, negative for a signal."""
    owner = os.getppid()
    # A signal to us must end the server too, so it becomes an exception that passes the `finally`.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Safe here and not in the owner: this process has one thread.
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent)
    try:
        while server.poll() is None and os.getppid() == owner and not _closed(_POLL):
            pass
    finally:
        _end(server)
    return server.returncode


def _closed(seconds: float) -> bool:
    readable, _, _ = select.select([0], [], [], seconds)
    return bool(readable) and not os.read(0, 1)


def _end(server: subprocess.Popen[bytes]) -> None:
    for what, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        # The group outlives its leader: helpers of a server that died by itself are ended as well.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, what)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(seconds)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _leave(signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
