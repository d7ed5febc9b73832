"""Early stop, frozen parts, activation checkpointing, fused optimizer: a line of configuration each, and its effect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.recipes.optimizer import OptimizerConfig
from pipelines.recipes.override import override
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.initial_weights import describe_initial_model
from pipelines.train.engine.loop import TrainLoop
from sparse_detr.errors import ConfigError
from sparse_detr.losses.criterion import LossReport
from tests.pipelines.train.engine.forked import run_ranks
from tests.pipelines.train.engine.test_loop import Recorder


def with_aps(config: RunConfig, *aps: float) -> tuple[TrainLoop, Recorder]:
    """A loop whose epochs learn nothing and are evaluated to these numbers."""
    hooks = Recorder()
    loop = build_loop(config, hooks=hooks)
    loop.train_epoch = dict  # type: ignore[method-assign]
    loop.evaluate = lambda: {"ap": aps[loop.epoch - 1]}  # type: ignore[method-assign]
    return loop, hooks


@pytest.mark.parametrize(
    ("every", "aps", "length"),
    [
        (1, (0.1, 0.3, 0.3, 0.2, 0.9), 4),  # no better than its best twice
        (1, (0.1, 0.3, 0.2, 0.31, 0.2, 0.4), 6),
        (1, (0.0, 0.0, 0.0, 0.5), 3),
        (3, (0.5, 0.0, 0.4, 0.0, 0.0, 0.3, 0.9), 6),  # evaluated after 3 and 6: one look that found nothing better
    ],
)
def test_a_run_ends_early_once_its_ap_no_longer_rises(
    quick_run: RunConfig, every: int, aps: tuple[float, ...], length: int, tmp_path: Path
) -> None:
    changes = {"training.epochs": len(aps), "training.early_stop_epochs": 2, "training.evaluate_every": every}
    config = override(quick_run, changes)
    loop, hooks = with_aps(config, *aps)
    assert len(loop.run()) == length
    # What waits for the last epoch, such as the pictures or a trial's model, sees it.
    assert [told.epochs for told in hooks.epochs] == [len(aps)] * (length - 1) + [length]

    loop.save(tmp_path)
    again, _ = with_aps(config, *aps)
    again.restore(tmp_path)
    assert len(again.run()) == length
    longer, _ = with_aps(override(config, {"training.early_stop_epochs": 50}), *aps)
    longer.restore(tmp_path)
    assert len(longer.run()) == len(aps)


FROZEN = ("backbone.layer2", "decoder.layers.*.self_attention", "encoder.layers.0.feedforward.norm.weight")


def is_frozen(name: str) -> bool:
    return (
        name.startswith("backbone.layer2.")
        or (name.startswith("decoder.layers.") and ".self_attention." in name)
        or name == "encoder.layers.0.feedforward.norm.weight"
    )


@dataclass(frozen=True)
class Frozen:
    """Names of parameters that changed, and of those that got a gradient, over a short run."""

    config: RunConfig

    def __call__(self, rank: int, world_size: int) -> tuple[list[str], list[str], list[str]]:
        loop = build_loop(self.config, rank=rank, world_size=world_size)
        loop.evaluate = dict  # type: ignore[method-assign]
        before = {name: value.detach().clone() for name, value in loop.model.named_parameters()}
        loop.run()
        now = dict(loop.model.named_parameters())
        changed = [name for name, value in now.items() if not torch.equal(value, before[name])]
        return list(now), changed, [name for name, value in now.items() if value.grad is not None]


def test_frozen_parts_stay_as_they_are_to_the_bit(quick_run: RunConfig, tmp_path: Path) -> None:
    changes = {"optimizer.freeze": list(FROZEN), "optimizer.weight_decay": 0.1, "training.micro_batch": 4}
    for names, changed, with_gradient in run_ranks(2, tmp_path, Frozen(override(quick_run, changes))):
        assert sum(map(is_frozen, names)) > 10
        assert changed == with_gradient == [name for name in names if not is_frozen(name)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["backbone.layre2"], r"optimizer\.freeze: 'backbone.layre2' fits nothing .* did you mean backbone\.layer2"),
        (["qqq"], r"its parts are backbone, feature_projection, scoring_network, encoder, queries, decoder"),
        (["*"], r"optimizer\.freeze: \* leaves nothing to be trained"),
    ],
)
def test_names_that_freeze_nothing_or_all_are_refused_before_any_worker_starts(
    quick_run: RunConfig, names: list[str], message: str
) -> None:
    classes = build_loop(quick_run).data.classes
    with pytest.raises(ConfigError, match=message):
        describe_initial_model(override(quick_run, {"optimizer.freeze": names}), classes)


def saved_bytes(loop: TrainLoop) -> tuple[int, LossReport]:
    """Bytes of the tensors that the forward pass of a step keeps for its gradient; runs the gradient too."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    loop.network.train()
    (batch,) = next(iter(loop.data.train))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        report = loop.update.accumulate(0, batch, 8.0)
    return sum(kept.values()), report


@pytest.mark.parametrize("backbone", ["resnet_tiny", "swin_tiny"])
def test_activation_checkpointing_takes_less_memory_for_the_same_gradients(quick_run: RunConfig, backbone: str) -> None:
    norm = "group_norm" if backbone == "resnet_tiny" else "frozen_batch_norm"
    changes = {"model.dropout": 0.1, "model.backbone.name": backbone, "model.backbone.norm": norm}
    config = override(quick_run, changes | {"model.backbone.drop_path": 0.0 if backbone == "resnet_tiny" else 0.2})
    plain = build_loop(config)
    most, report = saved_bytes(plain)
    last = most
    every = [["decoder"], ["decoder", "encoder"], ["decoder", "encoder", "backbone"]]
    for parts in every if backbone == "resnet_tiny" else every[-1:]:
        loop = build_loop(override(config, {"training.activation_checkpointing": parts, "training.ema_decay": 0.9}))
        kept, again = saved_bytes(loop)
        assert kept < last
        last = kept
        assert torch.equal(again.total, report.total)
        for (name, one), other in zip(loop.model.named_parameters(), plain.model.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]
    assert last < 0.5 * most
    assert set(loop.evaluate()) >= {"ap"}


def test_fused_and_grouped_updates_agree(quick_run: RunConfig) -> None:
    steps = [build_loop(override(quick_run, {"optimizer.fused": fused})).update for fused in (True, False)]
    assert [step.optimizer.param_groups[0]["fused"] for step in steps] == [True, False]
    before = [parameter.detach().clone() for parameter in steps[0].model.parameters()]
    for number in range(3):
        for step in steps:
            random = torch.Generator().manual_seed(number)
            for parameter in step.model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=random)
            step._apply(torch.zeros(()))
    for one, other, first in zip(steps[0].model.parameters(), steps[1].model.parameters(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        assert not torch.equal(one, first)
    for step in steps:
        state = {name: value.clone() for name, value in step.model.state_dict().items()}
        step._apply(torch.ones(()))
        assert all(torch.equal(value, state[name]) for name, value in step.model.state_dict().items())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrainingConfig(early_stop_epochs=0), r"training\.early_stop_epochs: 0; give at least 1"),
        (
            lambda: TrainingConfig(activation_checkpointing=("head",)),  # type: ignore[arg-type]
            r"training\.activation_checkpointing: 'head' is not known; choose of backbone, encoder and decoder",
        ),
        (lambda: OptimizerConfig(freeze=(" ",)), r"optimizer\.freeze: ' ' is no name"),
    ],
)
def test_values_that_cannot_be_are_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ConfigError, match=message):
        build()
