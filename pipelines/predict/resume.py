"""What of a run is done, by one listing of its parts and a journal of what they hold, and the tasks for the rest."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict

import pyarrow as pa

from pipelines.predict.output import DETECTIONS_FOLDER, PARTS_FOLDER
from pipelines.predict.parts import Part, Stamp, inspect_part
from pipelines.predict.stored_manifest import TASK_SCHEMA
from sparse_detr.errors import StorageError, StoreUnavailableError
from sparse_detr.storage.listing import list_files
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently

TASKS = 2000
"""At most so many tasks for Ray, each of one or more blocks. Below, a task is a block; above, ten million images in
156 250 blocks would be as many objects in Ray's store and as many messages."""
_READERS = 16

Span = tuple[int, int]
"""First and last row."""


class Journal:
    """Writes down, now and then, which parts are done and what they hold, so that a resumed run need not read them."""

    PAUSE = 10.0
    """Seconds between two writes; parts of so long are read by a run that goes on."""
    FILE_PARTS = 10_000
    """Parts of one file, 1.5 MB; then the next is begun, so that no write grows with the run."""

    def __init__(self, output: Location, stamp: Stamp) -> None:
        self._folder = output.child(PARTS_FOLDER)
        self._stamp = stamp
        self._writer = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        self._number = 0
        self._parts: list[Part] = []
        self._dirty = False
        self._due = time.monotonic() + self.PAUSE

    def add(self, part: Part) -> None:
        """Note a part, and write if it is time."""
        self._parts.append(part)
        self._dirty = True
        full = len(self._parts) >= self.FILE_PARTS
        if full or time.monotonic() >= self._due:
            self.flush()
        if full and not self._dirty:
            self._parts, self._number = [], self._number + 1

    def flush(self) -> None:
        """Write what was noted. A store that is away is tried again later: the journal only saves reading."""
        if not self._dirty:
            return
        self._due = time.monotonic() + self.PAUSE
        content = {"stamp": dict(self._stamp.fields()), "parts": [asdict(part) for part in self._parts]}
        file = self._folder.child(f"{self._writer}-{self._number:05d}.json")
        with suppress(StoreUnavailableError):
            file.write_bytes(json.dumps(content).encode())
            self._dirty = False


def done_parts(output: Location, stamp: Stamp) -> list[Part]:
    """Parts of this run, in the order of the manifest; what is not in the journal, or of another size, is read.

    Raises:
        StorageError: the output cannot be listed.
    """
    folder = output.child(DETECTIONS_FOLDER)
    if not folder.exists():
        return []
    listing = list_files(folder, lambda name: name.endswith(".parquet"))
    known = _journalled(output, stamp)
    found: list[Part] = []
    unknown: list[str] = []
    for name, size in zip(listing.names, listing.sizes, strict=True):
        part = known.get(name)
        if part is not None and part.size == size:
            found.append(part)
        else:
            unknown.append(name)
    with ThreadPoolExecutor(_READERS) as pool:
        found += filter(None, pool.map(lambda name: inspect_part(output, name, stamp), unknown))
    found.sort(key=lambda part: part.first)
    kept: list[Part] = []
    for part in found:
        # However a run cut its blocks, none overlap; should there be any, the first counts.
        if not kept or part.first > kept[-1].last:
            kept.append(part)
    return kept


def _journalled(output: Location, stamp: Stamp) -> dict[str, Part]:
    folder = output.child(PARTS_FOLDER)
    known: dict[str, Part] = {}
    for name in folder.list() if folder.exists() else []:
        try:
            content = json.loads(patiently(folder.child(name).read_bytes))
            if content["stamp"] == stamp.fields():
                known |= {part.name: part for part in (Part(**entry) for entry in content["parts"])}
        except (StorageError, ValueError, KeyError, TypeError):
            continue  # It only saves reading the parts.
    return known


def gaps(parts: Sequence[Part], total: int) -> Iterator[Span]:
    """Rows that no part has."""
    start = 0
    for part in parts:
        if part.first > start:
            yield start, part.first - 1
        start = part.last + 1
    if start < total:
        yield start, total - 1


def plan_tasks(parts: Sequence[Part], total: int, block: int, *, retry_errors: bool = False) -> list[pa.Table]:
    """Tasks for what is not done, in a random order, the same each time: their first results are a sample of all.

    Args:
        parts: what is done.
        total: images in all.
        block: most images of a block.
        retry_errors: also do error rows again.
    """
    rows = [
        {"first": start, "rows": min(block, last - start + 1), "redo": False}
        for first, last in gaps(parts, total)
        for start in range(first, last + 1, block)
    ]
    if retry_errors:
        rows += [{"first": part.first, "rows": part.rows, "redo": True} for part in parts if part.errors]
    size = -(-len(rows) // TASKS)
    tasks = [
        pa.Table.from_pylist(rows[start : start + size], schema=TASK_SCHEMA) for start in range(0, len(rows), size or 1)
    ]
    random.Random(0).shuffle(tasks)
    return tasks
