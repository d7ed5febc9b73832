"""Ends the processes that a local Ray leaves when its driver is killed. A program of its own: `reaper.py NAME VALUE`.

Ray's agents look for their raylet now and then and stay for up to three minutes. The driver holds the other end of
standard input: when that closes without a word, the driver is dead, and whatever has NAME=VALUE in its environment is
ended. Imports nothing but the standard library, so that it starts in milliseconds and holds little memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

GRACE = 3.0
"""Seconds in which most of them end by themselves, and then again between SIGTERM and SIGKILL."""


def reap(name: str, value: str) -> None:
    """Wait for the end of the driver, and end what it left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.read(0, 1):
        return
    for what in (signal.SIGTERM, signal.SIGKILL):
        time.sleep(GRACE)
        for pid in marked(name, value):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)


def marked(name: str, value: str) -> list[int]:
    """Processes of this user, other than this one, that were started with NAME=VALUE in their environment."""
    wanted, found = f"{name}={value}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    reap(sys.argv[1], sys.argv[2])
