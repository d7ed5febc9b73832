from __future__ import annotations

import pytest
import torch

from pipelines.train.engine.loss_meter import LossMeter
from sparse_detr.losses.criterion import LossReport


def report(loss: float, overlap: float) -> LossReport:
    return LossReport(
        total=torch.tensor(loss, requires_grad=True),
        terms={"loss_ce": torch.tensor(loss / 2)},
        metrics={"corr": torch.tensor(overlap)},
    )


def test_means_leave_out_what_is_not_finite() -> None:
    loss_meter = LossMeter("cpu")
    for loss, overlap in ((1.0, 0.5), (3.0, float("nan"))):
        loss_meter.add(report(loss, overlap), images=4)

    means = loss_meter.means(seconds=2.0, world_size=1)
    assert means == {"loss": 2.0, "loss_ce": 1.0, "corr": 0.5, "images_per_second": 4.0, "train_seconds": 2.0}


def test_what_was_never_finite_is_left_out() -> None:
    loss_meter = LossMeter("cpu")
    loss_meter.add(report(1.0, float("nan")), images=1)

    assert "corr" not in loss_meter.means(seconds=1.0, world_size=1)
    assert loss_meter.means(seconds=1.0, world_size=1)["loss"] == pytest.approx(1.0)
