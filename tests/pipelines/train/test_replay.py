"""A step whose numbers break is left out or ends the run, is kept, and breaks again in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipelines.cli import main as cli
from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.recipes.override import override
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.finite import IN_A_ROW, FiniteCheck
from pipelines.train.engine.loop import TrainLoop
from pipelines.train.replay import Replay, replay
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError, NotFiniteError
from sparse_detr.model.config import ModelConfig
from sparse_detr.records import Batch
from tests.pipelines.train.engine.forked import run_ranks

Break = Callable[[TrainLoop], None]


def put_infinity_into_the_weights(loop: TrainLoop) -> None:
    with torch.no_grad():
        loop.model.encoder.layers[1].feedforward.expand.weight[3, 5] = torch.inf  # type: ignore[union-attr]


def put_huge_weights(loop: TrainLoop) -> None:
    """Finite, and their products with tokens are not."""
    with torch.no_grad():
        loop.model.decoder.layers[0].feedforward.expand.weight.fill_(3e38)  # type: ignore[union-attr]


def break_a_gradient(model: SparseDetr) -> None:
    """All of the forward pass is finite: 0 times the infinite slope of a root at 0 is NaN."""
    layer = model.decoder.layers[1].feedforward
    layer.register_forward_hook(lambda _module, _inputs, output: output + 0 * (output * 0).sqrt())


def spoil_a_batch(loop: TrainLoop, step: int = 1, number: int = 1) -> None:
    """One pixel of one image of one step is NaN, as from memory that failed."""
    accumulate = loop.update.accumulate

    def spoilt(at: int, batch: Batch, boxes: float) -> object:
        if (loop.update._step, at) == (step, number):
            batch.images.pixels[0, 1, 10, 10] = torch.nan
        return accumulate(at, batch, boxes)

    loop.update.accumulate = spoilt  # type: ignore[assignment]


@pytest.fixture
def config(quick_run: RunConfig) -> RunConfig:
    changes = {"data.train_limit": 8, "training.global_batch": 4, "training.micro_batch": 2, "training.epochs": 1}
    return override(quick_run, changes | {"model.dropout": 0.1, "optimizer.warmup_steps": 0})


def kept(config: RunConfig) -> list[Path]:
    return sorted(Path(config.output, "not_finite").glob("step_*"))


def stopped(config: RunConfig, break_it: Break) -> tuple[str, Replay]:
    """The message with which the run ended, and the step again."""
    loop = build_loop(config)
    break_it(loop)
    with pytest.raises(NotFiniteError) as caught:
        loop.run()
    (folder,) = kept(config)
    assert f"the step is kept: sparse-detr train --replay {folder}" in str(caught.value)
    return str(caught.value), replay(str(folder))


def test_weights_with_an_infinity_are_named(config: RunConfig) -> None:
    message, again = stopped(config, put_infinity_into_the_weights)

    assert message.startswith("step 0 (epoch 1): NaN or infinity of loss_ce")
    assert again.reproduced
    assert (again.step, again.phase) == (0, "forward")
    assert all(each.same and "loss_ce" in each.bad_terms for each in again.micro_batches)
    assert again.origin is not None
    assert again.origin.kind == "NaN"
    assert "in encoder.layers.1.feedforward" in again.origin.where
    assert str(again.origin).endswith("infinity in the weights encoder.layers.1.feedforward.expand.weight")


def test_weights_that_overflow_are_found_where_they_do(config: RunConfig) -> None:
    _, again = stopped(config, put_huge_weights)

    assert again.reproduced
    assert again.origin is not None
    assert again.origin.before is not None
    assert again.origin.before.where == "aten.addmm.default in decoder.layers.0.feedforward.expand"


def test_a_gradient_that_breaks_alone_is_found_in_the_backward_pass(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = build_loop(config)
    break_a_gradient(loop.model)
    with pytest.raises(NotFiniteError, match=r"of the gradient \(norm nan\); the loss terms are finite here"):
        loop.run()
    (folder,) = kept(config)

    class Broken(SparseDetr):
        """The program that trained, whose fault is in its code."""

        def __init__(self, config: ModelConfig) -> None:
            super().__init__(config)
            break_a_gradient(self)

    monkeypatch.setattr("pipelines.train.replay.SparseDetr", Broken)
    again = replay(str(folder / "record.json"))

    assert again.reproduced
    assert again.phase == "backward"
    assert all(each.same and not each.bad_terms and each.bad_gradients for each in again.micro_batches)
    assert again.origin is not None
    assert again.origin.kind == "NaN"
    assert "SqrtBackward0 of decoder.layers.1.feedforward" in again.origin.where


@dataclass(frozen=True)
class Skipping:
    """A run of which one micro-batch is spoilt; its weights at the end, and what it counted."""

    config: RunConfig
    late: bool = False

    def __call__(self, rank: int, world_size: int) -> tuple[dict[str, Tensor], list[float], list[str]]:
        loop = build_loop(self.config, rank=rank, world_size=world_size)
        loop.evaluate = dict  # type: ignore[method-assign]
        if self.late:
            check = loop.update.check
            loop.update.check = FiniteCheck(self.config.optimizer, late=True, mode="skip", keep=check._keep)
        spoil_a_batch(loop)
        history = loop.run()
        return dict(loop.model.state_dict()), [row["skipped_updates"] for row in history], [
            term for term in history[0] if term.startswith("loss")
        ]  # fmt: skip


@pytest.mark.parametrize("late", [False, True])
def test_a_spoilt_batch_is_left_out_and_kept_with_its_pixels(config: RunConfig, tmp_path: Path, late: bool) -> None:
    config = override(config, {"training.not_finite": "skip"})
    ((weights, counts, terms),) = run_ranks(1, tmp_path / "run", Skipping(config, late))

    assert counts == [1.0]
    assert "loss_ce" in terms
    assert all(bool(value.isfinite().all()) for value in weights.values())
    (folder,) = kept(config)
    assert folder.name == "step_000001"
    again = replay(str(folder))
    assert again.reproduced
    assert [bool(each.bad_terms) for each in again.micro_batches] == [False, True]
    assert str(again.origin).endswith("NaN in the images' pixels")


def test_ranks_leave_out_the_same_update(config: RunConfig, tmp_path: Path) -> None:
    config = override(config, {"training.not_finite": "skip"})
    ((alone, _, _),) = run_ranks(1, tmp_path / "1", Skipping(config))
    together = run_ranks(2, tmp_path / "2", Skipping(override(config, {"output": str(tmp_path / "two")})))

    assert [counts for _, counts, _ in together] == [[1.0], [1.0]]
    for name, value in alone.items():
        assert torch.equal(together[0][0][name], together[1][0][name])
        torch.testing.assert_close(together[0][0][name], value, rtol=1e-3, atol=1e-4)
    again = replay(str(tmp_path / "two" / "not_finite" / "step_000001"))
    assert again.reproduced
    assert len(again.micro_batches) == 2


def test_too_many_in_a_row_stop_the_run_and_a_checkpoint_counts_on(config: RunConfig, tmp_path: Path) -> None:
    changes = {"data.train_limit": 12, "training.global_batch": 1, "training.micro_batch": 1,
               "training.not_finite": "skip"}  # fmt: skip
    config = override(config, changes)
    loop = build_loop(config)
    put_infinity_into_the_weights(loop)
    loop.network.train()
    batches = iter(loop.data.train)
    for _ in range(IN_A_ROW - 1):
        loop.train_step(next(batches))
    loop.save(tmp_path)
    assert [folder.name for folder in kept(config)] == ["step_000000"]

    second = build_loop(config)
    second.restore(tmp_path)
    second.network.train()
    second.train_step(next(batches))
    assert second.update.check.skipped == IN_A_ROW
    with pytest.raises(NotFiniteError, match=f"step {IN_A_ROW} .* the last of {IN_A_ROW + 1} steps in a row"):
        second.train_step(next(batches))


def test_the_command_needs_no_recipe(config: RunConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = replace(config, tracking_uri="postgresql://me:hush@host/db")
    loop = build_loop(config)
    put_infinity_into_the_weights(loop)
    with pytest.raises(NotFiniteError):
        loop.run()
    (folder,) = kept(config)
    assert "hush" not in (folder / "record.json").read_text()

    assert cli.main(["train", "--replay", str(folder)]) == 0
    said = "".join(capsys.readouterr().out.replace("│", "").split())
    assert "yes,tothelastbit" in said
    assert "infinityintheweightsencoder.layers.1.feedforward.expand.weight" in said
    assert cli.main(["train", "--replay", str(tmp_path)]) == 2
    assert "has no record.json" in capsys.readouterr().err


def kept_with_infinity(config: RunConfig) -> Path:
    """The step that a run kept whose weights had an infinity."""
    loop = build_loop(config)
    put_infinity_into_the_weights(loop)
    with pytest.raises(NotFiniteError):
        loop.run()
    (folder,) = kept(config)
    return folder


def test_numbers_that_do_not_fit_are_refused(config: RunConfig) -> None:
    folder = kept_with_infinity(config)
    record = json.loads((folder / "record.json").read_text())
    batch = folder / "micro_batch_0000.safetensors"
    whole = batch.read_bytes()
    tensors = safetensors.torch.load(whole)
    names = safetensors.safe_open(batch, "pt").metadata()
    labels, counts = tensors["labels"], tensors["counts"]
    for changes, said in (
        ({"counts": counts + 5}, "counts: .*, of"),
        ({"counts": torch.tensor([-1, len(labels) + 1])}, "counts: .*, of"),
        ({"counts": counts.float()}, r"counts: torch.float32 \(2,\), wanted torch.int64 \(2,\)"),
        ({"labels": labels + 4}, "labels: .*, the model knows 4 classes"),
        ({"labels": labels - 9}, "labels: -.*, the model knows 4 classes"),
        ({"boxes": tensors["boxes"][:, :3].contiguous()}, "boxes: torch.float32"),
        ({"pixels": tensors["pixels"][:1].contiguous()}, "padding: torch.bool"),
        ({"terms": tensors["terms"][1:].contiguous()}, "terms: torch.float32"),
    ):
        batch.write_bytes(safetensors.torch.save(tensors | changes, names))
        with pytest.raises(CheckpointError, match=f"is not what a training keeps .*{said}"):
            replay(str(folder))
    batch.write_bytes(whole)
    for name, value in (("threads", 0), ("threads", 10**9), ("threads", True), ("step", -1), ("step", 1.5),
                        ("step", 10**30), ("epoch", "1"), ("boxes", float("nan"))):  # fmt: skip
        (folder / "record.json").write_text(json.dumps(record | {name: value}))
        with pytest.raises(CheckpointError, match=f"{name}: "):
            replay(str(folder))
    (folder / "record.json").write_text('{"format":' * 10**5)
    with pytest.raises(CheckpointError, match="is not what a training keeps"):
        replay(str(folder))


def test_what_is_not_whole_is_refused(config: RunConfig) -> None:
    folder = kept_with_infinity(config)
    record = json.loads((folder / "record.json").read_text())
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is not what a training keeps"):
        replay(str(folder))
    (folder / "record.json").write_text(json.dumps(record | {"format": 9}))
    with pytest.raises(CheckpointError, match="format 9"):
        replay(str(folder))
    with pytest.raises(ConfigError, match=r"training\.not_finite: 'warn' is not known; choose stop or skip"):
        TrainingConfig(not_finite="warn")  # type: ignore[arg-type]
