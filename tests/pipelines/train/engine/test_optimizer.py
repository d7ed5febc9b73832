from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pipelines.recipes.optimizer import OptimizerConfig
from pipelines.train.engine.optimizer import build_optimizer, parameter_groups
from pipelines.train.engine.schedule import learning_rate_factor, set_learning_rates
from sparse_detr.detector import SparseDetr
from sparse_detr.model.config import BackboneConfig, ModelConfig

SMALL = ModelConfig(
    num_classes=3,
    backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=2),
    channels=32,
    heads=4,
    encoder_layers=2,
    decoder_layers=2,
    feedforward_channels=32,
    queries=5,
)


def test_every_trainable_parameter_is_in_the_group_that_its_name_says() -> None:
    model = SparseDetr(SMALL)
    groups = {group["name"]: group for group in parameter_groups(model, OptimizerConfig(), global_batch=16)}
    home = {id(parameter): name for name, group in groups.items() for parameter in group["params"]}  # type: ignore[attr-defined]

    wanted = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = "backbone" if name.startswith("backbone.") else "rest"
            wanted[id(parameter)] = "offsets" if "sampling_offsets" in name else group
    assert home == wanted
    # 2 encoder and 2 decoder layers, a weight and a bias each.
    assert len(groups["offsets"]["params"]) == 8  # type: ignore[arg-type]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1")) for name in frozen)


def test_rates_follow_the_paper_and_the_batch() -> None:
    model = SparseDetr(SMALL)

    def rates(batch: int, **changes: object) -> dict[object, object]:
        config = OptimizerConfig(**changes)  # type: ignore[arg-type]
        return {group["name"]: group["lr"] for group in parameter_groups(model, config, global_batch=batch)}

    assert rates(16) == {"backbone": 2e-5, "offsets": pytest.approx(2e-5), "rest": 2e-4}
    # The authors' single GPU with a batch of 2 trains at 2e-4 * sqrt(2 / 16).
    assert rates(2)["rest"] == pytest.approx(7.0711e-5, rel=1e-4)
    assert rates(2, scale_with_batch=False)["rest"] == 2e-4


def test_step_schedule() -> None:
    config = OptimizerConfig(schedule="step", drop_epoch=40, drop_factor=0.1)

    assert [learning_rate_factor(config, step, 10, 50) for step in (0, 399, 400, 499)] == [1.0, 1.0, 0.1, 0.1]


def test_step_schedule_is_that_of_torch_in_long_runs_too() -> None:
    config = OptimizerConfig(lr=1.0, schedule="step", drop_epoch=3, drop_factor=0.5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.lr)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, config.drop_epoch, config.drop_factor)
    for epoch in range(10):
        rate = optimizer.param_groups[0]["lr"]
        assert {learning_rate_factor(config, 4 * epoch + step, 4, 10) for step in range(4)} == {rate}
        optimizer.step()
        theirs.step()


def test_cosine_schedule_with_warmup() -> None:
    config = OptimizerConfig(schedule="cosine", warmup_steps=4, final_factor=0.1)

    factors = [learning_rate_factor(config, step, 12, 2) for step in range(24)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    # Half way through the 20 steps after the warm-up: the mean of 1 and 0.1.
    assert factors[14] == pytest.approx(0.55)
    # A quarter: 0.1 + 0.9 * (1 + cos 45 degrees) / 2.
    assert factors[9] == pytest.approx(0.1 + 0.45 * (1 + math.sqrt(0.5)))
    assert 0.1 < factors[-1] < 0.11
    assert learning_rate_factor(config, 24, 12, 2) == pytest.approx(0.1)


def test_setting_rates_twice_does_not_compound() -> None:
    optimizer = build_optimizer(SparseDetr(SMALL), OptimizerConfig(), global_batch=16)
    for _ in range(2):
        set_learning_rates(optimizer, 0.5)

    assert {group["name"]: group["lr"] for group in optimizer.param_groups}["rest"] == 1e-4


def test_adamw_moves_as_computed_by_hand() -> None:
    # First step of AdamW: decay by lr * wd, then the sign of the gradient times lr (bias-corrected m / sqrt(v)).
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5), global_batch=16)
    (model.weight * 3.0).sum().backward()
    optimizer.step()

    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)


def test_a_model_without_trainable_parameters_is_our_own_error() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(nn.Linear(1, 1).requires_grad_(False), OptimizerConfig(), global_batch=16)
