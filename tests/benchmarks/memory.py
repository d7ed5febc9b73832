"""Memory of this process, of those that it started, and of the shared memory that Ray's object store is in."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psutil


class Memory:
    """Samples the memory of this process and its children each second (unique set, so that nothing counts twice)."""

    NAMES = ("driver", "workers", "all of Ray", "object store")

    def __init__(self) -> None:
        self._over = threading.Event()
        self._started = time.monotonic()
        self.samples: list[tuple[float, ...]] = []
        """Seconds, and MB of each of `NAMES`."""

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def peaks(self) -> list[float]:
        """Largest values, MB, in the order of `NAMES`."""
        return [max(values) for values in list(zip(*self.samples, strict=True))[1:]]

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            children = psutil.Process().children(recursive=True)
            found = {child.pid: own_memory(child.pid) for child in children}
            workers = sum(found[child.pid] for child in children if _is_worker(child))
            seconds = time.monotonic() - self._started
            self.samples.append((seconds, own_memory(os.getpid()), workers, sum(found.values()), shared_memory()))


def own_memory(pid: int) -> float:
    """Memory that a process shares with no other, MB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def shared_memory() -> float:
    """MB in use in /dev/shm, which Ray's object store is in; pages that were never touched do not count."""
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize / 2**20


def _is_worker(process: psutil.Process) -> bool:
    """A process of the pool that detects, by the name that Ray gives it."""
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
