"""When a checkpoint is due, and its way into the store while the training goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from pipelines.recipes.config import TrainingConfig
from pipelines.train.engine.checkpoint import Snapshot
from sparse_detr.errors import StoreUnavailableError

logger = logging.getLogger(__name__)


class SnapshotStore(Protocol):
    """Where snapshots go."""

    def write(self, snapshot: Snapshot) -> None:
        """Write one, whole or not at all."""


class Checkpointer:
    """Writes snapshots of a run, one at a time, in a thread of its own; for rank 0.

    Not Ray Train's asynchronous upload (2.60): a store that is away for longer than its three tries ends the training
    there, and it copies the files of a checkpoint in any order, the seal too.
    """

    def __init__(
        self, store: SnapshotStore, config: TrainingConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            store: takes the snapshots.
            config: its `checkpoint_` fields say when, and how long the training may go on without.
            clock: seconds.
        """
        self._store, self._config, self._clock = store, config, clock
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._unwritten: StoreUnavailableError | None = None
        self._begun = self._whole = clock()

    @property
    def busy(self) -> bool:
        """Whether a snapshot is on its way."""
        return self._writing is not None and not self._writing.done()

    def due(self, step: int) -> bool:
        """Whether to take a snapshot after step number `step`; never while the one before is on its way.

        Raises:
            StorageError: as `take`.
        """
        if self.busy:
            return False
        self._settle()
        every, minutes = self._config.checkpoint_steps, self._config.checkpoint_minutes
        by_steps = every is not None and (step + 1) % every == 0
        return by_steps or (minutes > 0 and self._clock() - self._begun >= 60 * minutes)

    def take(self, snapshot: Snapshot) -> None:
        """Begin to write a snapshot, after the one before is done.

        Raises:
            StorageError: that one could not be written, and not because the store was away; or the store has been
                away for longer than the config allows.
        """
        self._settle()
        self._begun = self._clock()
        self._writing = self._pool.submit(self._store.write, snapshot)

    def close(self) -> None:
        """Wait until the last snapshot is written.

        Raises:
            StorageError: it could not be.
        """
        self._settle()
        self._pool.shutdown()
        if self._unwritten is not None:
            raise self._unwritten

    def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except StoreUnavailableError as error:
            # Without its traceback: the frames hold the snapshot, as large as the model and its optimizer.
            self._unwritten = error.with_traceback(None)
            without = (self._clock() - self._whole) / 60
            if without > self._config.checkpoint_patience_minutes:
                raise
            logger.warning("no checkpoint for %.0f minutes (%s); the training goes on", without, error)
        else:
            self._whole, self._unwritten = self._begun, None
