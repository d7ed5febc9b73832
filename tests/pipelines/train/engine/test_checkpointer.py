"""Checkpoints by steps and by minutes, beside the training, and what a store that is away costs it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import cast

import pytest

from pipelines.recipes.config import TrainingConfig
from pipelines.train.engine.checkpoint import Snapshot
from pipelines.train.engine.checkpointer import Checkpointer
from sparse_detr.errors import StorageError, StoreUnavailableError


@dataclass
class Store:
    """Takes numbers for snapshots, when it is allowed to."""

    written: list[object] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def write(self, snapshot: Snapshot) -> None:
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        self.written.append(snapshot)


@dataclass
class Clock:
    minutes: float = 0.0

    def __call__(self) -> float:
        return 60 * self.minutes


def number(value: int) -> Snapshot:
    return cast(Snapshot, value)


def opened() -> Store:
    store = Store()
    store.open.set()
    return store


def settled(checkpointer: Checkpointer) -> None:
    assert checkpointer._writing is not None
    checkpointer._writing.exception(timeout=30)


def test_they_are_due_by_steps_over_the_run() -> None:
    checkpointer = Checkpointer(opened(), TrainingConfig(checkpoint_steps=3, checkpoint_minutes=0))
    assert [step for step in range(10) if checkpointer.due(step)] == [2, 5, 8]
    none = Checkpointer(opened(), TrainingConfig(checkpoint_minutes=0))
    assert not any(map(none.due, range(100)))


def test_they_are_due_by_minutes_since_the_last() -> None:
    clock = Clock()
    checkpointer = Checkpointer(opened(), TrainingConfig(checkpoint_minutes=10), clock=clock)
    found = []
    for step in range(8):
        clock.minutes += 4
        if checkpointer.due(step):
            found.append(step)
            checkpointer.take(number(step))
            settled(checkpointer)
    assert found == [2, 5]


def test_the_training_goes_on_while_one_is_written() -> None:
    store = Store()
    checkpointer = Checkpointer(store, TrainingConfig(checkpoint_steps=1))
    checkpointer.take(number(1))
    assert not checkpointer.due(1)
    assert store.written == []
    store.open.set()
    settled(checkpointer)
    assert checkpointer.due(2)
    checkpointer.take(number(2))
    checkpointer.take(number(3))
    checkpointer.close()
    assert store.written == [1, 2, 3]


def test_a_store_that_is_away_is_borne_for_as_long_as_configured(caplog: pytest.LogCaptureFixture) -> None:
    store, clock = opened(), Clock()
    config = TrainingConfig(checkpoint_minutes=10, checkpoint_patience_minutes=40)
    checkpointer = Checkpointer(store, config, clock=clock)
    store.error = StoreUnavailableError("s3://bucket: away")

    def after(minutes: float) -> bool:
        clock.minutes += minutes
        due = checkpointer.due(0)
        if due:
            checkpointer.take(number(0))
            settled(checkpointer)
        return due

    with caplog.at_level(logging.WARNING):
        assert [after(12), after(1), after(12)] == [True, False, True]
    assert "no checkpoint for 13 minutes (s3://bucket: away); the training goes on" in caplog.text
    store.error = None
    assert after(12)
    store.error = StoreUnavailableError("s3://bucket: away again")
    assert [after(12), after(12), after(12)] == [True, True, True]
    with pytest.raises(StoreUnavailableError, match="away again"):
        after(12)


def test_the_end_waits_for_the_last_one_and_says_if_it_is_missing() -> None:
    store = opened()
    store.error = StoreUnavailableError("s3://bucket: away")
    checkpointer = Checkpointer(store, TrainingConfig())
    checkpointer.take(number(1))
    with pytest.raises(StoreUnavailableError, match="away"):
        checkpointer.close()


def test_what_does_not_pass_by_itself_is_raised_at_once() -> None:
    store = opened()
    store.error = StorageError("/full: No space left on device")
    checkpointer = Checkpointer(store, TrainingConfig(checkpoint_steps=1))
    checkpointer.take(number(1))
    settled(checkpointer)
    with pytest.raises(StorageError, match="No space left"):
        checkpointer.due(1)
