"""Means of losses over an epoch, kept on the device until the epoch ends."""

from __future__ import annotations

import torch
import torch.distributed as dist

from sparse_detr.losses.criterion import LossReport


class LossMeter:
    """Sums what every step reports; a value that is not finite (a level without attention) counts for nothing."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self._sums: torch.Tensor | None = None
        self._images = 0

    def add(self, report: LossReport, images: int) -> None:
        """Take up one step."""
        named = {"loss": report.total} | report.terms | report.metrics
        values = torch.stack([value.detach().float() for value in named.values()])
        finite = torch.isfinite(values)
        row = torch.stack((values.where(finite, 0.0), finite.float()))
        if self._sums is None:
            self._names, self._sums = tuple(named), torch.zeros_like(row)
        self._sums += row
        self._images += images

    def means(self, seconds: float, world_size: int) -> dict[str, float]:
        """Means over the steps of all ranks, and their images a second; every rank must call it."""
        if self._sums is None:
            return {"images_per_second": 0.0}
        totals = torch.cat((self._sums.flatten(), self._sums.new_tensor([float(self._images), seconds])))
        if world_size > 1:
            dist.all_reduce(totals)
        *_, images, summed_seconds = totals.tolist()
        sums, counts = totals[:-2].reshape(2, -1)
        means = (sums / counts).tolist()
        found = {name: mean for name, mean, count in zip(self._names, means, counts.tolist(), strict=True) if count}
        mean_seconds = summed_seconds / world_size
        return found | {"images_per_second": images / mean_seconds, "train_seconds": mean_seconds}
