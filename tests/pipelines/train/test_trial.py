"""A run that is only tried: nothing is written, no cluster starts, and what it says is what a run then does."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
import ray

from pipelines.cli import main as cli
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train import overfit
from pipelines.train.config import TrainOptions, options_of
from pipelines.train.dry_run import dry_run
from pipelines.train.engine.build import build_loop
from pipelines.train.overfit import Overfit, overfit_one_batch
from sparse_detr.errors import ConfigError, OutputExistsError


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_a_dry_run_measures_and_writes_nothing(quick_run: RunConfig, tmp_path: Path, loader_workers: int) -> None:
    changes = {"training.workers": 3, "training.micro_batch": 2, "data.loader_workers": loader_workers}
    config = override(quick_run, changes | {"training.epochs": 10, "training.evaluate_every": 4})
    before = files(tmp_path)
    connected = ray.is_initialized()
    plan = dry_run(config)

    assert files(tmp_path) == before
    assert ray.is_initialized() == connected
    # Four micro-batches on three workers: 2, 1 and 1. 24 images are three steps of 8.
    assert (plan.share, plan.steps_per_epoch, plan.steps) == (2, 3, 30)
    assert len(plan.step_seconds) >= 2
    assert 50 * 2**20 < plan.memory < 64 * 2**30
    # Three evaluations: after epochs 4, 8 and 10.
    seconds = 30 * statistics.median(plan.step_seconds) + 3 * 8 * plan.validation_seconds / 3
    assert plan.hours == pytest.approx(seconds / 3600)
    assert plan.start.data.train_images == 24

    loop = build_loop(override(config, {"training.workers": 1}))
    loop.network.train()
    loop.train_step(next(iter(loop.data.train)))
    loop.save(tmp_path / "checkpoint")
    written = sum(file.stat().st_size for file in files(tmp_path / "checkpoint") if file.is_file())
    assert plan.checkpoint_bytes == pytest.approx(written, rel=0.1)


def test_a_dry_run_refuses_what_a_run_would(quick_run: RunConfig) -> None:
    Path(quick_run.output).mkdir()
    Path(quick_run.output, "run.json").write_text("{}")
    with pytest.raises(OutputExistsError, match="overwrite or resume"):
        dry_run(quick_run)


def test_a_batch_is_learned(quick_run: RunConfig, tmp_path: Path) -> None:
    config = override(quick_run, {"training.global_batch": 4, "model.channels": 64, "model.feedforward_channels": 128})
    before, steps = files(tmp_path), list[int]()
    connected = ray.is_initialized()
    found = overfit_one_batch(config, lambda done, _all: steps.append(done))

    assert found.learned
    assert found.ap >= 0.9
    assert found.images == 4
    assert steps == list(range(1, found.steps + 1))
    assert found.losses["loss_ce"][1] < 0.2 * found.losses["loss_ce"][0]
    assert files(tmp_path) == before
    assert ray.is_initialized() == connected


def not_learned(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Overfit:
    monkeypatch.setattr(overfit, "STEPS", 40)
    monkeypatch.setattr(overfit, "LOOK", 20)
    found = overfit_one_batch(config)
    assert not found.learned
    return found


def test_a_loss_without_weight_is_named_and_the_head_that_gets_no_gradient(
    quick_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = not_learned(
        override(quick_run, {"loss.box_weight": 0.0, "loss.giou_weight": 0.0}), monkeypatch
    ).problems()

    assert any(line.startswith("loss_bbox did not fall") for line in problems)
    (dead,) = [line for line in problems if line.startswith("no gradient in")]
    assert "decoder.heads.0.boxes" in dead
    assert "classes" not in dead


def test_a_rate_that_moves_nothing_and_a_cut_gradient_are_named(
    quick_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = override(quick_run, {"optimizer.lr": 1e-9, "optimizer.clip_norm": 0.01})
    problems = not_learned(slow, monkeypatch).problems()

    assert any(
        re.match(r"weights of the group rest moved by .*, at a learning rate of 1e-09", line) for line in problems
    )
    assert not any("group backbone" in line for line in problems)
    assert any(line.endswith("is cut down to optimizer.clip_norm 0.01") for line in problems)


def test_a_batch_needs_objects(quick_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"training\.global_batch: 32, but only 24 training images have objects"):
        overfit_one_batch(override(quick_run, {"training.global_batch": 32}))


def command(config: RunConfig, *more: str) -> list[str]:
    data = config.data
    return ["train", "tiny", "--data.train-annotations", data.train_annotations, "--data.train-images",
            data.train_images, "--data.val-annotations", data.val_annotations, "--data.val-images", data.val_images,
            "--output", config.output, "--tracking-uri", "none", *more]  # fmt: skip


def test_the_command_shows_the_plan(quick_run: RunConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(command(quick_run, "--dry-run")) == 0
    said = "".join(capsys.readouterr().out.replace("│", "").split())
    for part in ("24trainingimages,8validationimages", "nothingwaswritten", "hours", quick_run.output):
        assert part in said
    assert files(tmp_path) == []


def test_the_command_ends_with_1_where_a_batch_is_not_learned(
    quick_run: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overfit, "STEPS", 20)
    monkeypatch.setattr(overfit, "LOOK", 20)
    more = ("--overfit-one-batch", "--optimizer.lr", "1e-9", "--data.short-side", "64", "--data.max-side", "64")
    assert cli.main(command(quick_run, *more, "--training.global-batch", "2")) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "was not learned" in said
    assert "What does not learn" in said


def test_options_are_those_of_a_run_and_no_more() -> None:
    options = options_of("tiny")
    assert isinstance(options, TrainOptions)
    assert type(options.run) is RunConfig
    assert options.run.name == "tiny"
    with pytest.raises(ConfigError, match="dry_run and replay: both are set; give one of them"):
        TrainOptions(dry_run=True, replay="x")
