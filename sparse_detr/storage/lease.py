"""A lease: one job at a time may write to an output folder, and a job that died does not hold it for ever.

The folder `_lease` holds numbered files, and the highest number is the owner. A file is created by one conditional
write, so of several jobs that try at once exactly one gets it. The owner rewrites its own file every few seconds; who
finds a file whose owner is gone creates the next number, which again one alone can. So no two jobs ever write the same
file, and no store's clock is compared with another's: time is measured from one look at a heartbeat to the next.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sparse_detr.errors import OutputExistsError, StorageError, StoreUnavailableError
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently

FOLDER = "_lease"
HEARTBEAT_SECONDS = 5.0
"""Between two heartbeats: 17 000 small writes a day."""
DEAD_SECONDS = 45.0
"""Without a heartbeat for so long, an owner on another machine counts as dead: a store may be slow for some seconds,
and a job that waits longer only delays its own restart."""


_HELD: set[str] = set()
"""Leases that jobs of this process hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The job that holds a folder."""

    id: str
    user: str
    host: str
    pid: int
    process: str
    """Tells this process from any other on its machine, before and after a restart of either."""
    started: str
    beat: int = 0
    """Number of the heartbeat."""
    ended: bool = False

    def __str__(self) -> str:
        return f"{self.user} on {self.host}, process {self.pid}, since {self.started}"


class Lease:
    """A folder that is held; `check` says whether it still is."""

    def __init__(self, folder: Location, owner: Owner, number: int) -> None:
        self._folder = folder
        self._owner = owner
        self._number = number
        self.lost = threading.Event()
        """Set when another job took the folder over."""
        self._successor: Owner | None = None
        _HELD.add(owner.id)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise unless this job still holds the folder.

        Raises:
            OutputExistsError: another job took it over, as after a long sleep of this one.
        """
        if self.lost.is_set():
            successor = self._successor or "another job"
            raise OutputExistsError(
                f"output: {self._folder.parent().uri} was taken over by {successor}, because this job gave no sign of "
                "life; the other one goes on, this one ends"
            )

    def release(self) -> None:
        """Say that the job has ended; the folder is free."""
        self._over.set()
        _HELD.discard(self._owner.id)
        # A store that is silent must not hold the end of the job for minutes.
        self._thread.join(2 * HEARTBEAT_SECONDS)
        with suppress(StorageError):
            _write(self._folder, self._number, replace(self._owner, ended=True))
            for number in _numbers(self._folder):
                if number < self._number:
                    _file(self._folder, number).delete_file()

    def _beat(self) -> None:
        beat = 0
        while not self._over.wait(HEARTBEAT_SECONDS):
            beat += 1
            # A store that is away is the job's own matter; another job sees no heartbeat either and cannot take over.
            with suppress(StorageError):
                newest = max(_numbers(self._folder), default=self._number)
                if newest > self._number:
                    with suppress(StorageError):
                        self._successor = _read(self._folder, newest)
                    self.lost.set()
                    return
                _write(self._folder, self._number, replace(self._owner, beat=beat))


@contextmanager
def held(output: Location, *, field: str = "output") -> Iterator[Lease]:
    """Hold a folder for as long as the block runs.

    Args:
        output: the folder; it need not exist.
        field: names the setting in messages.

    Raises:
        OutputExistsError: another job holds it and is alive; says who.
        StorageError: the store cannot be written to, or knows no conditional writes.
    """
    lease = _taken(output.child(FOLDER), field)
    try:
        yield lease
    finally:
        lease.release()


def _taken(folder: Location, field: str) -> Lease:
    owner = _this_process()
    content = json.dumps(asdict(owner)).encode()
    while True:
        newest = max(patiently(_numbers, folder), default=0)
        if newest:
            _require_free(folder, newest, field)
        number = newest + 1
        created = patiently(_file(folder, number).create, content)
        # A write whose answer was lost was repeated, and then refused because of itself.
        if created or _is_ours(folder, number, owner):
            if created and patiently(_file(folder, number).create, content):
                raise StorageError(
                    f"{field}: {folder.parent().uri} is in a store that ignores conditional writes, by which two "
                    "jobs on one output are kept apart; use one that knows them (AWS S3, MinIO, SeaweedFS, Ceph 19)"
                )
            return Lease(folder, owner, number)


def _is_ours(folder: Location, number: int, owner: Owner) -> bool:
    found = patiently(_read, folder, number)
    return found is not None and found.id == owner.id


def _require_free(folder: Location, number: int, field: str) -> None:
    """Wait until it is clear whether the owner lives; at most DEAD_SECONDS, mostly no time at all."""
    first = patiently(_read, folder, number)
    since = time.monotonic()
    while first is not None and not first.ended and _lives(first) is not False:
        now = patiently(_read, folder, number)
        if _lives(first) or (now is not None and now.beat != first.beat):
            raise OutputExistsError(
                f"{field}: {folder.parent().uri} is held by a job that runs: {first}; wait for its end, stop it, or "
                "choose another output"
            )
        if time.monotonic() - since > DEAD_SECONDS:
            return
        time.sleep(HEARTBEAT_SECONDS / 5)


def _lives(owner: Owner) -> bool | None:
    """Whether the owner's process lives; None where it runs, or ran, on another machine or in another container."""
    mine = _this_process()
    here, there = (found.process.rpartition("/")[0] for found in (mine, owner))
    if not here or (mine.host, here) != (owner.host, there):
        return None
    if (owner.pid, owner.process) == (mine.pid, mine.process):
        # A job of this very process: the process lives on after it.
        return owner.id in _HELD
    return _process_mark(owner.pid) == owner.process


def _this_process() -> Owner:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return Owner(
        id=secrets.token_hex(8),
        user=user,
        host=socket.gethostname(),
        pid=os.getpid(),
        process=_process_mark(os.getpid()),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _process_mark(pid: int) -> str:
    """Boot of the machine and space of process numbers, then the start of the process in it; empty where it is gone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        # The 22nd field; the second, the program's name, may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] == "Z":
        return ""
    return f"{boot} {space}/{fields[19]}"


def _file(folder: Location, number: int) -> Location:
    return folder.child(f"{number:08d}.json")


def _numbers(folder: Location) -> list[int]:
    if not folder.exists():
        return []
    names = [name.removesuffix(".json") for name in folder.list()]
    return [int(name) for name in names if name.isdigit()]


def _read(folder: Location, number: int) -> Owner | None:
    """None where the file is gone or is no lease."""
    try:
        return Owner(**json.loads(_file(folder, number).read_bytes()))
    except StoreUnavailableError:
        raise
    except (StorageError, ValueError, TypeError):
        return None


def _write(folder: Location, number: int, owner: Owner) -> None:
    _file(folder, number).write_bytes(json.dumps(asdict(owner)).encode())
