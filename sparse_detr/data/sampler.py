"""Which images a worker sees, in which order: seeded, divided over ranks, new in every epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from sparse_detr.errors import require


class EpochSampler(Sampler[int]):
    """The share of one rank in one epoch.

    All ranks draw the same order from (seed, epoch) and take every `world_size`-th place, so that in an epoch no image
    is seen twice. All ranks have equally many; the last `size % world_size` images of the order wait for another epoch.
    """

    def __init__(
        self,
        size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            size: number of images.
            rank: which worker this is, from 0.
            world_size: number of workers.
            seed: with the epoch it decides the order.

        Raises:
            ConfigError: a number out of its range, or so few images that a rank would get none.
        """
        for name, value, right in (
            ("world_size", world_size, world_size >= 1),
            ("rank", rank, 0 <= rank < world_size),
            ("seed", seed, seed >= 0),
        ):
            require(right, f"sampler.{name}: {value}; need 0 <= rank < world_size and seed >= 0")
        require(size >= world_size, f"sampler.size: {size} images for {world_size} workers; give each at least one")
        self._size = size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._size // self._world_size

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self._size)
        np.random.default_rng((self._seed, self.epoch)).shuffle(order)
        mine = order[self._rank :: self._world_size][: len(self)]
        return iter(mine.tolist())
