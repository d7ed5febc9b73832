from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.train.engine.ema import WeightAverage


def test_the_average_follows_by_hand_computed_shares() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, decay=0.5)

    expected = 0.0
    for step in range(1, 12):
        nn.init.constant_(model.weight, float(step))
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.model.weight.item() == pytest.approx(expected, rel=1e-5)
    # From step 8 on the rising decay has reached 0.5.
    assert (1 + 8) / (10 + 8) == 0.5


def test_buffers_are_copied_and_nothing_is_trainable() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.9)
    model(torch.randn(8, 2))
    average.update(model)

    assert torch.equal(average.model.running_mean, model.running_mean)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert model.weight.requires_grad
    assert not average.model.training
