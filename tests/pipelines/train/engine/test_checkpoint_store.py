"""Checkpoints are whole or not there, the newest is found by name, and the best are kept beside it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from pipelines.services.s3_server import LocalS3
from pipelines.train.engine.checkpoint import SEAL, Snapshot, TrainingState, load_checkpoint
from pipelines.train.engine.checkpoint_store import NEWEST, CheckpointStore, Position
from sparse_detr.storage.location import Location, locate
from tests.faulty_store import faulty_store
from tests.pipelines.train.engine.test_checkpoint import small_model


def snapshot(epoch: int, epoch_step: int = 0, aps: tuple[float | None, ...] = ()) -> Snapshot:
    history = [{"loss": 1.0} | ({} if ap is None else {"ap": ap}) for ap in aps]
    state = TrainingState(
        epoch=epoch, epoch_step=epoch_step, step=100 * epoch + epoch_step, optimizer={}, history=history
    )
    return Snapshot.of(small_model(), state)


def names(store: CheckpointStore) -> list[str]:
    found = store.folder.list()
    found.remove(NEWEST)
    assert list(map(str, store.whole())) == found
    return found


def test_positions_follow_the_training() -> None:
    places = [Position(0, 7), Position(1), Position(1, 9), Position(1, 10), Position(2), Position(10)]
    assert sorted(places) == places
    assert [Position.of(str(place)) for place in places] == places
    assert str(Position(3, 120)) == "epoch_0003_step_000120"
    assert [place.begun for place in places] == [1, 1, 2, 2, 2, 10]
    assert Position.of("epoch_x") is Position.of("checkpoint_manager_snapshot.json") is None


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(folder=locate(tmp_path), keep=2)
    assert store.newest() is None
    aps = (0.3, 0.1, None, 0.2, 0.2)
    left = []
    for epoch in range(5):
        store.write(snapshot(epoch, 50, aps[:epoch]))
        store.write(snapshot(epoch + 1, aps=aps[: epoch + 1]))
        left.append(names(store))
        assert store.newest() == Position(epoch + 1)
    assert left == [
        ["epoch_0001"],
        ["epoch_0001", "epoch_0002"],
        ["epoch_0001", "epoch_0002", "epoch_0003"],
        ["epoch_0001", "epoch_0004"],
        ["epoch_0001", "epoch_0005"],
    ]
    store.write(snapshot(5, 50, aps))
    assert names(store) == ["epoch_0001", "epoch_0005", "epoch_0005_step_000050"]


def test_checkpoints_within_an_epoch_do_not_pile_up(tmp_path: Path) -> None:
    store = CheckpointStore(folder=locate(tmp_path), keep=3)
    for step in (10, 20, 30):
        store.write(snapshot(0, step))
        assert names(store) == [f"epoch_0000_step_0000{step}"]
    assert load_checkpoint(tmp_path / "epoch_0000_step_000030")[1].epoch_step == 30


def _write_and_stick(folder: Path, stop_before: str) -> None:
    """Write a checkpoint, and stand still before a file of it."""
    upload = Location._upload

    def stuck(self: Location, source: Path) -> None:
        if source.name == stop_before:
            (folder / "here").touch()
            time.sleep(600)
        upload(self, source)

    Location._upload = stuck  # type: ignore[method-assign]  # in a process of its own
    CheckpointStore(folder=locate(folder / "run")).write(snapshot(0, 20))


@pytest.mark.parametrize("stop_before", ["trainer.pt", SEAL])
def test_a_process_killed_while_it_writes_leaves_the_last_good_one(tmp_path: Path, stop_before: str) -> None:
    store = CheckpointStore(folder=locate(tmp_path / "run"))
    store.write(snapshot(0, 10))

    # Not forked: threads that this process has would hold their locks in the other one for ever.
    process = multiprocessing.get_context("spawn").Process(target=_write_and_stick, args=(tmp_path, stop_before))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "here").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    assert store.folder.list() == ["epoch_0000_step_000010", "epoch_0000_step_000020", NEWEST]
    assert store.newest() == Position(0, 10)
    assert load_checkpoint(tmp_path / "run" / "epoch_0000_step_000010")[1].step == 10
    store.write(snapshot(0, 30))
    assert names(store) == ["epoch_0000_step_000030"]


def test_a_store_that_fails_is_tried_again(
    s3: LocalS3, store: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_store(s3.endpoint) as proxy, monkeypatch.context() as patch:
        proxy.delay = 0.2
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        checkpoints = CheckpointStore(folder=locate(store.uri))
        for step, rate in ((10, 0.0), (20, 0.3)):
            proxy.rate = rate
            checkpoints.write(snapshot(0, step))
        assert proxy.failed
    seen = CheckpointStore(folder=store)
    assert seen.newest() == Position(0, 20)
    store.child("epoch_0000_step_000020").download_to(tmp_path / "back")
    assert load_checkpoint(tmp_path / "back")[1].step == 20


@pytest.mark.parametrize("behind_by", [1, 2])
def test_a_listing_that_is_behind_hides_nothing(
    s3: LocalS3, store: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind_by: int
) -> None:
    """Of one checkpoint, so that it shows what is deleted since; or from before the first, so that it shows nothing."""
    with faulty_store(s3.endpoint) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        checkpoints = CheckpointStore(folder=locate(store.uri))
        store.child("other").write_bytes(b"")
        places = [Position(0, 10), Position(0, 20)]
        for number, place in enumerate(places):
            proxy.stale = number >= len(places) - behind_by
            assert checkpoints.newest() == (places[number - 1] if number else None)
            checkpoints.write(snapshot(0, place.epoch_step))
            assert checkpoints.newest() == place
        assert checkpoints.whole()[-1] == places[-1]
        checkpoints.fetch(places[-1], tmp_path / "back")
    assert load_checkpoint(tmp_path / "back")[1].step == 20


@pytest.mark.parametrize("content", [b"", b"epoch_0007", b"\xff"])
def test_a_pointer_that_is_wrong_misleads_nobody(tmp_path: Path, content: bytes) -> None:
    store = CheckpointStore(folder=locate(tmp_path))
    store.write(snapshot(0, 10))
    (tmp_path / NEWEST).write_bytes(content)
    assert store.newest() == Position(0, 10)
    store.write(snapshot(0, 20))
    assert store.newest() == Position(0, 20)
