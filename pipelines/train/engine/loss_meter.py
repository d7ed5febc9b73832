"""Means of losses over an epoch, kept on the device until the epoch ends or a checkpoint is due."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.train.engine.ranks import Ranks
from sparse_detr.losses.criterion import LossReport


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLosses:
    """What the ranks have seen of an epoch so far."""

    names: tuple[str, ...]
    sums: Tensor
    """[ranks, 2, names] float32 on the host: sums of the finite values, and their number. A row a rank, because a sum
    of sums would round otherwise than in a run that never stopped."""


class LossMeter:
    """Sums what every micro-batch reports; a value that is not finite (a level without attention) counts for nothing.

    The mean of a step's micro-batches is the loss of its global batch: see `TrainLoop`.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None

    def add(self, report: LossReport) -> None:
        """Take up one micro-batch."""
        named = {"loss": report.total} | report.terms | report.metrics
        values = torch.stack([value.detach().float() for value in named.values()])
        finite = torch.isfinite(values)
        row = torch.stack((values.where(finite, 0.0), finite.float()))
        if self._sums is None:
            self._names, self._sums = tuple(named), torch.zeros_like(row)
        self._sums += row

    def seen(self, ranks: Ranks) -> SeenLosses | None:
        """What all ranks have seen, None at the start of an epoch; every rank must call it."""
        if self._sums is None:
            return None
        return SeenLosses(names=self._names, sums=ranks.gather(self._sums))

    def restore(self, seen: SeenLosses, ranks: Ranks) -> None:
        """Go on from there: every rank with its own row, or where their number is another, the first with them all."""
        if len(seen.sums) == ranks.world_size:
            row = seen.sums[ranks.rank].clone()
        else:
            row = seen.sums.sum(0) if ranks.rank == 0 else torch.zeros_like(seen.sums[0])
        self._names, self._sums = seen.names, row.to(self._device)

    def means(self, ranks: Ranks) -> dict[str, float]:
        """Means over the micro-batches of all ranks; every rank must call it."""
        seen = self.seen(ranks)
        if seen is None:
            return {}
        sums, counts = seen.sums.double().sum(0).tolist()
        return {name: total / count for name, total, count in zip(seen.names, sums, counts, strict=True) if count}
