"""The ranks of a training as one of them sees them: what they tell one another beside the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Ranks:
    """A meeting of all ranks on the host. Every method must be called by every rank, in the same order.

    On GPUs it is a group of its own over gloo: NCCL's would wait for all that the device still has to do.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        """One of `world_size` ranks; with more than one, torch.distributed must be initialised."""
        self.rank, self.world_size = rank, world_size
        self._group = dist.new_group(backend="gloo") if world_size > 1 and dist.get_backend() != "gloo" else None

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each number over the ranks."""
        if self.world_size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, group=self._group)
        found: list[float] = shared.tolist()
        return found

    def gather(self, row: Tensor) -> Tensor:
        """The rows of all ranks, of equal shape, one below the other and on the host."""
        row = row.detach().cpu()
        if self.world_size == 1:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.world_size)]
        dist.all_gather(rows, row, group=self._group)
        return torch.stack(rows)

    def gather_objects(self, value: T) -> list[T]:
        """What every rank gave; to be pickled."""
        if self.world_size == 1:
            return [value]
        found = [value] * self.world_size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def first(self, value: T) -> T:
        """What rank 0 gave."""
        if self.world_size == 1:
            return value
        shared: list[T] = [value]
        dist.broadcast_object_list(shared, src=0, group=self._group)
        return shared[0]
