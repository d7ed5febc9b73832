from __future__ import annotations

import torch

from pipelines.train.engine.loss_meter import LossMeter, SeenLosses
from pipelines.train.engine.ranks import Ranks
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
        loss_meter.add(report(loss, overlap))

    assert loss_meter.means(Ranks()) == {"loss": 2.0, "loss_ce": 1.0, "corr": 0.5}


def test_what_was_never_finite_is_left_out() -> None:
    loss_meter = LossMeter("cpu")
    loss_meter.add(report(1.0, float("nan")))

    assert loss_meter.means(Ranks()) == {"loss": 1.0, "loss_ce": 0.5}


def test_it_goes_on_from_what_was_seen_bit_for_bit() -> None:
    losses = torch.rand(9, generator=torch.Generator().manual_seed(0)).tolist()
    whole, first, second = (LossMeter("cpu") for _ in range(3))
    assert first.seen(Ranks()) is None
    for loss in losses:
        whole.add(report(loss, loss))
    for loss in losses[:4]:
        first.add(report(loss, loss))
    seen = first.seen(Ranks())
    assert seen is not None
    second.restore(seen, Ranks())
    for loss in losses[4:]:
        second.add(report(loss, loss))
    assert second.means(Ranks()) == whole.means(Ranks())


def test_another_number_of_ranks_goes_on_from_the_sum() -> None:
    sums = torch.tensor([[[6.0], [3.0]], [[2.0], [1.0]]])
    loss_meter = LossMeter("cpu")
    loss_meter.restore(SeenLosses(names=("loss",), sums=sums), Ranks())
    assert loss_meter.means(Ranks()) == {"loss": 2.0}
