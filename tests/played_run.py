"""A prediction of which two parts are played: the disk, on which a process can die at any write, and the workers, which
look at no pixel, so that a run takes a fraction of a second.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import torch

from pipelines.detect.images import ImageLoader, ImageRef, ImageResult, failure
from pipelines.detect.manifest import places
from pipelines.detect.rows import results_table
from pipelines.detect.workers import Pool, Work
from sparse_detr.errors import ImageError, StorageError, StoreUnavailableError
from sparse_detr.records import COCO_IMAGE_SIZE, Detections
from sparse_detr.storage.location import Location

Moment = Literal["before", "middle", "after"]


@dataclass(frozen=True)
class Kill:
    """The death of the run at its n-th write, with so many blocks that its workers still write."""

    write: int
    moment: Moment
    outlived: int


class KilledError(BaseException):
    """The process is dead: whatever it does from now on has no effect."""


class Disk:
    """Writes of all locations, of which one may be a process's last."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._kill: Kill | None = None
        self._writes = 0
        self.dead = False
        halves: dict[str, Callable[..., None]] = {
            "write_bytes": lambda place, data: _half_file(place, data),
            "write_file": lambda place, source: _half_file(place, source.read_bytes()),
            "create": lambda place, data: _half_file(place, data),
            "delete_file": lambda place: None,
            "delete_dir": _half_deleted,
        }
        for name, half in halves.items():
            patch.setattr(Location, name, self._wrapped(getattr(Location, name), half))

    @contextmanager
    def dying(self, kill: Kill | None) -> Iterator[None]:
        """A process, which this ends."""
        self._kill, self._writes, self.dead = kill, 0, False
        try:
            yield
        finally:
            self._kill, self.dead = None, False

    @contextmanager
    def outlived(self) -> Iterator[int]:
        """A worker of a process that is dead: number of blocks that it still writes."""
        kill, self._kill, self.dead = self._kill, None, False
        try:
            yield kill.outlived if kill else 0
        finally:
            self._kill, self.dead = kill, True

    def _wrapped(self, write: Callable[..., Any], half: Callable[..., None]) -> Callable[..., Any]:
        def wrapped(place: Location, *arguments: Any) -> Any:
            if self.dead:
                raise KilledError
            kill = self._kill
            self._writes += kill is not None
            if kill is None or self._writes <= kill.write:
                return write(place, *arguments)
            self.dead = True
            {"before": lambda *_: None, "middle": half, "after": write}[kill.moment](place, *arguments)
            raise KilledError

        return wrapped


def _half_file(place: Location, data: bytes) -> None:
    """What a write that is cut leaves: a file beside the one that was to be; nothing in an object store."""
    if not place.is_local:
        return
    target = Path(place.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f".{target.name}.{secrets.token_hex(8)}.part").write_bytes(data[: len(data) // 2])


def _half_deleted(place: Location) -> None:
    names = place.list(recursive=True)
    for name in names[: len(names) // 2]:
        place.filesystem.delete_file(place.child(name).path)


class Workers:
    """Plays the workers: detections are made of the files' bytes, and files that begin with `broken` cannot be read."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.away = 0
        """So many blocks more are left undone, as when the store is away for too long."""

    def stream(self, tasks: Sequence[pa.Table], work: Work, pool: Pool) -> Iterator[pa.Table]:
        """In place of the function of that name."""
        blocks = (block for task in tasks for block in work.source(task))
        try:
            for block in blocks:
                if self.away:
                    self.away -= 1
                    yield work.sink.failed((StoreUnavailableError.__name__, "the store is away"))
                else:
                    yield self._written(block, work)
        except GeneratorExit:
            if self._disk.dead:
                with self._disk.outlived() as count:
                    for block, _ in zip(blocks, range(count), strict=False):
                        self._written(block, work)
            raise

    def _written(self, block: pa.Table, work: Work) -> pa.Table:
        columns = (block.column(name).to_pylist() for name in ("index", "key", "etag"))
        images = [ImageRef(index=index, key=key, etag=etag) for index, key, etag in zip(*columns, strict=True)]
        results = [self._result(image, work) for image in images]
        rows = results_table(results, [None] * len(results), root=work.root, classes=None, fingerprint=work.fingerprint)
        return work.sink(block, rows)

    def _result(self, image: ImageRef, work: Work) -> ImageResult:
        try:
            data = ImageLoader(COCO_IMAGE_SIZE).fetch(places(work.root), image)
        except StorageError as error:
            return ImageResult(index=image.index, key=image.key, failure=failure("fetch", error))
        if data.startswith(b"broken"):
            return ImageResult(index=image.index, key=image.key, failure=failure("decode", ImageError("broken")))
        numbers = torch.tensor(list(hashlib.sha256(data).digest()), dtype=torch.float32)
        scores = numbers[:6] / 255
        kept = scores >= work.config.score_threshold  # type: ignore[attr-defined]
        found = Detections(scores=scores[kept], labels=numbers[6:12].long()[kept], boxes=numbers[:24].view(6, 4)[kept])
        return ImageResult(index=image.index, key=image.key, size=(8, 8), detections=found)
