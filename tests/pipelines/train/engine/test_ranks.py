"""A step of the global batch is the same whoever computes it, and a run that stops within an epoch loses nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.checkpoint import Snapshot, save_checkpoint
from pipelines.train.engine.hooks import NoHooks, Requests
from pipelines.train.engine.loop import TrainLoop
from sparse_detr.data.dataset import DetectionDataset
from tests.pipelines.train.engine.forked import run_ranks
from tests.small_training import without_times


@dataclass
class StopAt(NoHooks):
    """Asks for the end of the run after a step, and writes its checkpoint."""

    step: int | None = None
    folder: Path | None = None

    def requests(self, step: int) -> Requests:
        return Requests(stop=step + 1 == self.step)

    def checkpoint(self, snapshot: Snapshot) -> None:
        assert self.folder is not None
        save_checkpoint(self.folder, snapshot.model, snapshot.state)


@dataclass
class Seen:
    """What one rank did."""

    micro_batches: dict[tuple[int, int], tuple[tuple[int, ...], str]] = field(default_factory=dict)
    """Image ids and pixels of each micro-batch, by step and number."""
    losses: dict[tuple[int, int], float] = field(default_factory=dict)
    decoded: list[int] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    state: str = ""
    """Digest of weights, average and optimizer."""


def digest(*values: Any) -> str:
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            found.update(value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            found.update(digest(*(part for pair in sorted(value.items(), key=str) for part in pair)).encode())
        elif isinstance(value, list | tuple):
            found.update(digest(*value).encode())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def watch(loop: TrainLoop, seen: Seen) -> None:
    """Note every micro-batch and its loss, and every image that is decoded."""
    accumulate, pixels = loop.update.accumulate, DetectionDataset.pixels

    def accumulated(number: int, batch: Any, boxes: float) -> Any:
        report = accumulate(number, batch, boxes)
        at = (loop.step, number)
        seen.micro_batches[at] = (batch.image_ids, digest(batch.images.pixels, [t.boxes for t in batch.targets]))
        seen.losses[at] = report.total.item()
        return report

    def decoded(self: DetectionDataset, item: int) -> Any:
        seen.decoded.append(item)
        return pixels(self, item)

    loop.update.accumulate = accumulated  # type: ignore[method-assign]
    DetectionDataset.pixels = decoded  # type: ignore[method-assign]  # in a process of its own


@dataclass(frozen=True)
class Train:
    """Trains one rank from its start or a checkpoint, to its end or to a step."""

    config: RunConfig
    restore: Path | None = None
    stop: StopAt = field(default_factory=StopAt)

    def __call__(self, rank: int, world_size: int) -> Seen:
        loop = build_loop(self.config, rank=rank, world_size=world_size, hooks=self.stop)
        if self.restore is not None:
            loop.restore(self.restore)
        loop.evaluate = dict  # type: ignore[method-assign]  # it has tests of its own
        seen = Seen()
        watch(loop, seen)
        loop.run()
        seen.history = without_times(loop.history)
        seen.state = digest(loop.model.state_dict(), loop.eval_model.state_dict(), loop.optimizer.state_dict())
        return seen


@pytest.fixture
def accumulating(quick_run: RunConfig) -> RunConfig:
    """Two epochs of two steps, four micro-batches each, of 21 images: five are left over in each epoch."""
    changes = {
        "data.train_limit": 21,
        "data.cache": "none",
        "data.augment.crop": 0.5,
        "model.dropout": 0.1,
        "training.micro_batch": 2,
        "training.ema_decay": 0.9,
    }
    return override(quick_run, changes)


def without_most_objects(config: RunConfig, folder: Path) -> RunConfig:
    """One image in four has objects: in every step there are micro-batches, and ranks, without any."""
    data = json.loads(Path(config.data.train_annotations).read_text())
    kept = {image["id"] for image in data["images"][::4]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
    folder.mkdir()
    (folder / "few.json").write_text(json.dumps(data))
    return override(config, {"data.train_annotations": str(folder / "few.json")})


@pytest.mark.parametrize("objects", ["all", "few"])
def test_the_number_of_workers_changes_the_order_of_sums_alone(
    accumulating: RunConfig, tmp_path: Path, objects: str
) -> None:
    config = accumulating if objects == "all" else without_most_objects(accumulating, tmp_path / "data")
    (alone,) = run_ranks(1, tmp_path / "1", Train(config))
    assert sorted(alone.losses) == [(step, number) for step in range(4) for number in range(4)]
    for world_size in (2, 3, 4) if objects == "all" else (3,):
        together = run_ranks(world_size, tmp_path / str(world_size), Train(config))
        assert all(len(seen.losses) >= 4 for seen in together)
        micro_batches = {at: found for seen in together for at, found in seen.micro_batches.items()}
        losses = {at: loss for seen in together for at, loss in seen.losses.items()}
        assert micro_batches == alone.micro_batches
        assert sum(len(seen.losses) for seen in together) == len(losses)
        for at, loss in losses.items():
            assert loss == (alone.losses[at] if at[0] == 0 else pytest.approx(alone.losses[at], rel=1e-4))
        assert len({seen.state for seen in together}) == 1
        for seen in together:
            for mine, other in zip(seen.history, alone.history, strict=True):
                assert mine == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(("world_size", "stop"), [(1, 2), (1, 3), (3, 1)])
def test_a_run_that_stops_within_an_epoch_goes_on_bit_for_bit(
    accumulating: RunConfig, tmp_path: Path, world_size: int, stop: int
) -> None:
    whole = run_ranks(world_size, tmp_path / "whole", Train(accumulating))
    middle = tmp_path / "checkpoint"
    first = run_ranks(world_size, tmp_path / "first", Train(accumulating, stop=StopAt(stop, middle)))
    second = run_ranks(world_size, tmp_path / "second", Train(accumulating, restore=middle))

    for rank in range(world_size):
        assert second[rank].state == whole[rank].state != first[rank].state
        assert second[rank].history == whole[rank].history
        assert first[rank].losses | second[rank].losses == whole[rank].losses
        assert not first[rank].losses.keys() & second[rank].losses.keys()
        assert first[rank].decoded + second[rank].decoded == whole[rank].decoded
    assert sum(len(seen.decoded) for seen in whole) == 32
    assert all(len(row) > 3 for row in whole[0].history)


def test_another_number_of_workers_goes_on(accumulating: RunConfig, tmp_path: Path) -> None:
    (whole,) = run_ranks(1, tmp_path / "whole", Train(accumulating))
    middle = tmp_path / "checkpoint"
    run_ranks(2, tmp_path / "first", Train(accumulating, stop=StopAt(1, middle)))
    (second,) = run_ranks(1, tmp_path / "second", Train(accumulating, restore=middle))
    for mine, other in zip(second.history, whole.history, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
