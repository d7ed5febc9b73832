from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.finite import FiniteCheck
from pipelines.train.engine.hooks import NoHooks, Trained
from pipelines.train.engine.loop import TrainLoop
from pipelines.train.engine.loss_meter import LossMeter
from pipelines.train.engine.progress import StepProgress
from sparse_detr.errors import ConfigError, NotFiniteError
from sparse_detr.losses.criterion import LossReport


class Recorder(NoHooks):
    def __init__(self) -> None:
        self.steps: list[StepProgress] = []
        self.epochs: list[StepProgress] = []

    def step_done(self, progress: Callable[[], StepProgress]) -> None:
        self.steps.append(progress())

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        self.epochs.append(progress)


def weights(loop: TrainLoop) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in loop.eval_model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


LOSSES = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask_prediction")


def test_the_loop_learns_and_tells_how_far_it_is(quick_run: RunConfig) -> None:
    hooks = Recorder()
    # Overfit: the validation images are the training images, unaugmented.
    changes = {
        "data.train_limit": 8,
        "data.augment.crop": 0.0,
        "data.augment.flip": 0.0,
        "data.augment.short_sides": [64],
        "training.epochs": 40,
        "training.evaluate_every": 40,
        "training.ema_decay": 0.0,
        "optimizer.lr": 2e-3,
        "optimizer.backbone_lr": 2e-3,
    }
    loop = build_loop(override(quick_run, changes), hooks=hooks)
    history = loop.run()

    assert len(history) == 40
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["loss_ce"] < 0.5 * history[0]["loss_ce"]
    assert 0.0 <= history[-1]["ap"] <= history[-1]["ap50"] <= 1.0
    assert "ap" not in history[0]
    assert [progress.step for progress in hooks.steps] == list(range(1, 41))
    assert hooks.epochs[-1].epoch == hooks.epochs[-1].epochs == 40
    assert hooks.epochs[-1].metrics == history[-1]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_restored_run_goes_on_bit_for_bit(quick_run: RunConfig, tmp_path: Path, ema_decay: float) -> None:
    config = override(quick_run, {"training.ema_decay": ema_decay, "model.dropout": 0.1})
    whole = build_loop(config)
    whole.run()

    class StopError(Exception):
        pass

    class SaveOnce(Recorder):
        def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
            loop.save(tmp_path)
            raise StopError

    first = build_loop(config, hooks=SaveOnce())
    with pytest.raises(StopError):
        first.run()
    second = build_loop(config)
    second.restore(tmp_path)
    assert (second.epoch, second.step) == (1, 3)
    history = second.run()

    assert same(weights(whole), weights(second))
    assert same(dict(whole.model.state_dict()), dict(second.model.state_dict()))
    for mine, other in zip(whole.history, history, strict=True):
        assert {name: mine[name] for name in LOSSES} == {name: other[name] for name in LOSSES}
        assert mine["ap"] == other["ap"]


def test_a_training_shorter_than_its_checkpoint_is_refused(quick_run: RunConfig, tmp_path: Path) -> None:
    loop = build_loop(quick_run)
    loop.epoch = 3
    loop.save(tmp_path)
    with pytest.raises(ConfigError, match=r"training\.epochs: 2, but 3 are done or begun; give at least as many"):
        build_loop(override(quick_run, {"training.epochs": 2})).restore(tmp_path)


def test_epochs_differ_and_seeds_decide(quick_run: RunConfig) -> None:
    first, again = build_loop(quick_run), build_loop(quick_run)
    other = build_loop(override(quick_run, {"training.seed": 7}))
    histories = [loop.run() for loop in (first, again, other)]

    assert same(weights(first), weights(again))
    assert histories[0][0]["loss"] == histories[1][0]["loss"] != histories[2][0]["loss"]


def test_a_loss_that_is_not_finite_stops_with_step_and_term(quick_run: RunConfig) -> None:
    loop = build_loop(quick_run)
    criterion = loop.update.criterion

    def broken(output: Any, targets: Any, num_boxes: float) -> Any:
        report = criterion(output, targets, num_boxes)
        if loop.step == 1:
            report.terms["loss_giou"].fill_(float("nan"))
            object.__setattr__(report, "total", report.total * float("nan"))
        return report

    loop.update.criterion = broken  # type: ignore[assignment]
    before = weights(loop)
    with pytest.raises(NotFiniteError, match=r"step 1 \(epoch 1\): NaN or infinity of loss_giou.*optimizer\.lr"):
        loop.run()
    assert all(bool(value.isfinite().all()) for value in loop.model.state_dict().values())
    assert before.keys() == loop.model.state_dict().keys()


def test_a_late_check_names_the_step_that_broke_and_keeps_the_weights(quick_run: RunConfig) -> None:
    """As on a GPU, where the numbers of a step are looked at in the next one, or at the end of the epoch."""
    for broken_step in (1, 2):
        loop = build_loop(quick_run)
        loop.update.check = FiniteCheck(loop.config.optimizer, late=True)
        criterion, seen = loop.update.criterion, list[dict[str, Tensor]]()

        def broken(
            output: Any,
            targets: Any,
            num_boxes: float,
            loop: TrainLoop = loop,
            criterion: Any = criterion,
            seen: list[dict[str, Tensor]] = seen,
            broken_step: int = broken_step,
        ) -> Any:
            report = criterion(output, targets, num_boxes)
            if loop.step == broken_step:
                seen.append({name: value.clone() for name, value in loop.model.state_dict().items()})
                report.terms["loss_giou"].fill_(float("nan"))
                object.__setattr__(report, "total", report.total * float("nan"))
            return report

        loop.update.criterion = broken  # type: ignore[assignment]
        with pytest.raises(NotFiniteError, match=rf"step {broken_step} \(epoch 1\): NaN or infinity of loss_giou"):
            loop.run()
        assert same(seen[0], dict(loop.model.state_dict()))


class _Waits(TorchDispatchMode):
    """Counts numbers taken out of tensors, each of which waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("late", [False, True])
def test_update_and_hook_wait_for_nothing_unless_asked(quick_run: RunConfig, late: bool) -> None:
    class Quiet(Recorder):
        def step_done(self, progress: Callable[[], StepProgress]) -> None:
            pass

    # Dense: a sparse model asks for the number of kept tokens in every forward pass. The losses match on the host.
    loop = build_loop(override(quick_run, {"model.keep_ratio": 1.0}), hooks=Quiet())
    loop.update.check = FiniteCheck(loop.config.optimizer, late=late)
    batch = next(iter(loop.data.train))
    loop.network.train()
    report = loop.train_step(batch)
    loop._meter = LossMeter("cpu")  # which has other terms to count now
    loop.update.losses = lambda output, batch, boxes: report_of(output)  # type: ignore[method-assign]

    def report_of(output: Any) -> LossReport:
        total = output.logits.square().mean() + output.boxes.mean()
        return LossReport(total=total, terms={"loss_ce": total.detach()}, metrics={})

    with _Waits() as waits:
        for _ in range(3):
            report = loop.train_step(batch)
            loop.hooks.step_done(functools.partial(loop._step_progress, report))
    assert waits.count == 0
    with _Waits() as waits:
        shown = loop._step_progress(report).metrics
    assert waits.count == len({"loss", "loss_ce"} & shown.keys()) == 2


def test_predictions_that_are_not_finite_stop_with_the_step(quick_run: RunConfig) -> None:
    loop = build_loop(quick_run)
    with torch.no_grad():
        next(loop.model.decoder.parameters()).fill_(float("nan"))

    with pytest.raises(NotFiniteError, match=r"step 0 \(epoch 1\): .*NaN"):
        loop.run()


def test_bfloat16_trains_in_float32_weights(quick_run: RunConfig) -> None:
    loop = build_loop(override(quick_run, {"training.precision": "bfloat16", "training.epochs": 1}))
    before = weights(loop)
    (metrics,) = loop.run()

    assert all(value.dtype == torch.float32 for value in loop.model.state_dict().values() if value.is_floating_point())
    assert not same(before, weights(loop))
    exact = build_loop(override(quick_run, {"training.epochs": 1})).run()[0]
    assert metrics["loss"] != exact["loss"]
    assert metrics["loss"] == pytest.approx(exact["loss"], rel=0.05)


def test_gradients_are_clipped_to_the_norm(quick_run: RunConfig) -> None:
    loop = build_loop(override(quick_run, {"optimizer.clip_norm": 0.01}))
    loop.network.train()
    loop.train_step(next(iter(loop.data.train)))

    squares = [parameter.grad.square().sum() for parameter in loop.model.parameters() if parameter.grad is not None]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_fine_tuning_starts_from_the_given_model(quick_run: RunConfig, tmp_path: Path) -> None:
    from sparse_detr.weights.model_folder import save_model

    trained = build_loop(quick_run)
    trained.run()
    save_model(tmp_path / "model", trained.eval_model)
    tuned = build_loop(override(quick_run, {"training.init_model": str(tmp_path / "model"), "model.keep_ratio": 0.6}))

    assert same(weights(trained), weights(tuned))
    with pytest.raises(ConfigError, match=r"training\.init_model: .*shape"):
        build_loop(override(quick_run, {"training.init_model": str(tmp_path / "model"), "model.channels": 64}))
