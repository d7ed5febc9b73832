"""The checkpoints of a run below one folder of any store: their names, the newest whole one, and which are kept.

    epoch_0003               after three epochs, evaluated
    epoch_0003_step_000120   after 120 steps of the fourth

A checkpoint is there if its seal is; no clock has a say in it. A listing tells which there may be, and the file
`newest` the name of the last one: the listing of some stores, of caches before them and of NFS is behind for a while,
which the content of a file of a known name is not.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.train.engine.checkpoint import FILES, SEAL, Snapshot, TrainingState, save_checkpoint
from sparse_detr.errors import StorageError
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently

logger = logging.getLogger(__name__)

NEWEST = "newest"
_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A moment of a training; a later one is greater."""

    epoch: int
    """Epochs that are complete."""
    epoch_step: int = 0
    """Steps that are complete of the next one."""

    @property
    def begun(self) -> int:
        """Epochs that are complete or have begun."""
        return self.epoch + (self.epoch_step > 0)

    def __str__(self) -> str:
        return f"epoch_{self.epoch:04d}" + (f"_step_{self.epoch_step:06d}" if self.epoch_step else "")

    @classmethod
    def of(cls, name: str) -> Position | None:
        """The moment of a checkpoint's folder; None for any other name."""
        found = _NAME.fullmatch(name)
        return None if found is None else cls(int(found[1]), int(found[2] or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointStore:
    """Reads and writes checkpoints; of a run, one process at a time may write."""

    folder: Location
    keep: int = 2
    """Of the checkpoints with an AP so many are kept, the best; and the newest, whatever it is."""

    def whole(self) -> list[Position]:
        """The whole checkpoints, in the order of the training."""
        return [each for each in self._present() if self._is_whole(each)]

    def newest(self) -> Position | None:
        """The last whole checkpoint."""
        return next((each for each in reversed(self._present()) if self._is_whole(each)), None)

    def fetch(self, place: Position, target: Path) -> None:
        """Copy a checkpoint to an empty local folder, file by file: its own listing may be behind too.

        Raises:
            StorageError: one of its files cannot be read.
        """
        for name in FILES:
            self.folder.child(str(place), name).download_to(target / name)

    def write(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, whole or not at all, and then delete those that are no longer kept.

        Raises:
            StoreUnavailableError: the store was away for longer than is waited for it.
            StorageError: it cannot be written, or there is no room for it here.
        """
        state = snapshot.state
        place = Position(state.epoch, state.epoch_step)
        target = self.folder.child(str(place))
        with tempfile.TemporaryDirectory(prefix="sparse-detr-") as folder:
            save_checkpoint(Path(folder), snapshot.model, state)
            patiently(lambda: target.copy_tree_from(Path(folder), last=SEAL))
        patiently(self.folder.child(NEWEST).write_bytes, str(place).encode())
        patiently(self._prune, place, state)

    def _prune(self, newest: Position, state: TrainingState) -> None:
        """Delete all but the best and the newest; also what is left of a write that was cut short."""
        scored = [each for each in self.whole() if each != newest and ap_of(each, state.history) is not None]
        if ap_of(newest, state.history) is not None:
            scored.append(newest)
        scored.sort(key=lambda each: (ap_of(each, state.history), each))
        kept = {newest, *scored[-self.keep :]}
        for each in self._present():
            if each not in kept and each < newest:
                self._delete(each)

    def _delete(self, place: Position) -> None:
        folder = self.folder.child(str(place))
        try:
            # The seal goes first: what is left if this is cut short is no checkpoint.
            folder.child(SEAL).delete_file()
            folder.delete_dir()
        except StorageError as error:
            logger.warning("%s could not be deleted (%s); the next checkpoint tries again", folder.uri, error)

    def _present(self) -> list[Position]:
        names = self.folder.list() if self.folder.is_dir() else []
        newest = self.folder.child(NEWEST)
        if newest.exists():
            names.append(newest.read_bytes().decode(errors="replace").strip())
        return sorted({place for place in map(Position.of, names) if place is not None})

    def _is_whole(self, place: Position) -> bool:
        return self.folder.child(str(place), SEAL).exists()


def ap_of(place: Position, history: Sequence[Mapping[str, float]]) -> float | None:
    """Validation AP of a checkpoint; None within an epoch, and where it was not evaluated."""
    if place.epoch_step or not 1 <= place.epoch <= len(history):
        return None
    return history[place.epoch - 1].get("ap")
