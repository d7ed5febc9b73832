"""A broken training image: the run stops at the same step on every rank, or the next sound image stands in for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.recipes.config import RunConfig
from pipelines.recipes.data import DataConfig
from pipelines.recipes.override import override
from pipelines.tracking.tracker import NullTracker
from pipelines.train.broken_report import BrokenReport
from pipelines.train.engine.broken_images import BrokenImages, BrokenLimit
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.checkpoint import load_training_state
from pipelines.train.output import read_broken_images
from sparse_detr.errors import ConfigError, ErrorBudgetError, ImageError
from sparse_detr.records import BrokenImage
from sparse_detr.storage.location import locate
from tests.pipelines.train.engine.forked import run_ranks
from tests.pipelines.train.engine.test_ranks import Seen, StopAt, Train

Spoil = Callable[..., RunConfig]


@pytest.fixture
def spoilt(quick_run: RunConfig, tmp_path: Path) -> Spoil:
    """The run on pictures of which some, by their place in the annotations, are none; four micro-batches a step."""

    def spoil(*places: int, **changes: object) -> RunConfig:
        folder = tmp_path / "pictures"
        shutil.copytree(quick_run.data.train_images, folder)
        images = json.loads(Path(quick_run.data.train_annotations).read_text())["images"]
        for place in places:
            (folder / images[place]["file_name"]).write_bytes(b"no picture")
        named = {name.replace("__", "."): value for name, value in changes.items()}
        fixed = {"data.train_images": str(folder), "data.cache": "none", "data.augment.crop": 0.5,
                 "data.broken_images": "skip", "data.broken_share": 0.2, "model.dropout": 0.1,
                 "training.micro_batch": 2}  # fmt: skip
        return override(quick_run, fixed | named)

    return spoil


def names(seen: Seen) -> list[float]:
    return [row["broken_images"] for row in seen.history]


def image_ids(seen: Seen) -> list[int]:
    return [image for _, (ids, _) in sorted(seen.micro_batches.items()) for image in ids]


def test_a_step_with_stand_ins_is_the_same_for_any_number_of_ranks_and_loaders(spoilt: Spoil, tmp_path: Path) -> None:
    config = spoilt(3, 4, 23)
    (alone,) = run_ranks(1, tmp_path / "1", Train(config))
    ids = [image["id"] for image in json.loads(Path(config.data.train_annotations).read_text())["images"]]

    # Each epoch takes all 24 places: number 5 stands in for 3 and 4, and the first image of the file for its last.
    for epoch in (0, 1):
        drawn = image_ids(alone)[24 * epoch : 24 * (epoch + 1)]
        assert sorted(drawn) == sorted([*ids[:3], ids[5], ids[5], *ids[5:23], ids[0]])
    assert names(alone) == [3.0, 3.0]
    for world_size, changes in ((3, {}), (2, {"data.loader_workers": 1})):
        together = run_ranks(world_size, tmp_path / str(world_size), Train(override(config, changes)))
        assert {at: found for seen in together for at, found in seen.micro_batches.items()} == alone.micro_batches
        assert all(names(seen) == [3.0, 3.0] for seen in together)


def test_a_resumed_run_counts_on(spoilt: Spoil, tmp_path: Path) -> None:
    config, middle = spoilt(3, 4), tmp_path / "checkpoint"
    (whole,) = run_ranks(1, tmp_path / "whole", Train(config))
    run_ranks(2, tmp_path / "first", Train(config, stop=StopAt(2, middle)))
    before = load_training_state(middle).broken
    (second,) = run_ranks(1, tmp_path / "second", Train(config, restore=middle))

    assert 1 <= len(before) <= 2
    assert all("not an image that can be read" in image.reason for image in before)
    assert names(second) == names(whole) == [2.0, 2.0]


@dataclass(frozen=True)
class Failing:
    """The error that ends a rank, and the step at which it does."""

    config: RunConfig

    def __call__(self, rank: int, world_size: int) -> tuple[str, str, int]:
        loop = build_loop(self.config, rank=rank, world_size=world_size)
        try:
            loop.run()
        except (ImageError, ErrorBudgetError) as error:
            return type(error).__name__, str(error), loop.step
        raise AssertionError("the run went on")


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_every_rank_stops_at_the_same_step_with_the_same_message(spoilt: Spoil, tmp_path: Path, mode: str) -> None:
    config = spoilt(3, 4, data__broken_images=mode, data__broken_share=0.05)
    first, second = run_ranks(2, tmp_path / "ranks", Failing(config))

    assert first == second
    kind, message, step = first
    assert step < 3
    if mode == "stop":
        assert kind == "ImageError"
        assert message.count(config.data.train_images) == 1
        assert "data.broken_images: skip" in message
    else:
        assert kind == "ErrorBudgetError"
        assert message.startswith("data.broken_share: allows 1 broken training images, and 2 were met")
        assert message.count("not an image that can be read") == 2


def test_the_limit_is_a_share_of_the_images() -> None:
    assert BrokenLimit.of(DataConfig(broken_images="skip"), 250).images == 2
    assert BrokenLimit.of(DataConfig(broken_images="skip", broken_share=1.0), 7).images == 7
    assert BrokenLimit.of(DataConfig(broken_share=1.0), 250).images == 0
    with pytest.raises(ConfigError, match=r"data\.broken_share: 1\.5; give a share in \[0, 1\]"):
        DataConfig(broken_share=1.5)
    with pytest.raises(ConfigError, match=r"data\.broken_images: 'warn' is not known; choose stop or skip"):
        DataConfig(broken_images="warn")  # type: ignore[arg-type]


def test_the_list_is_in_the_output_and_in_mlflow(tmp_path: Path, quick_run: RunConfig) -> None:
    class Texts(NullTracker):
        def text(self, text: str, name: str) -> None:
            texts.append((name, text))

    texts: list[tuple[str, str]] = []
    output = locate(tmp_path / "run")
    report, loop = BrokenReport(output, Texts()), build_loop(quick_run)
    report.epoch_done(loop, loop._progress({}))
    assert (texts, read_broken_images(output)) == ([], [])

    found = (BrokenImage(file="/a/ж.jpg", reason="cut short"), BrokenImage(file="/a/b.jpg", reason="is no image"))
    loop.broken = BrokenImages(BrokenLimit(images=2, mode="skip"), found)
    for _ in range(2):
        report.epoch_done(loop, loop._progress({}))
    assert texts == [("broken_images.txt", "/a/b.jpg: is no image\n/a/ж.jpg: cut short")]
    assert read_broken_images(output)[1] == {"file": "/a/ж.jpg", "reason": "cut short"}
