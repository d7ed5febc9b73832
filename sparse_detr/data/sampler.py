"""Which images a worker sees, in which order: seeded, divided over ranks, new in every epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from sparse_detr.errors import require


class EpochSampler(Sampler[int]):
    """The share of one rank in one epoch.

    All ranks draw the same order from (seed, epoch) and take every `world_size`-th place, so that in an epoch no image
    is seen twice. With `drop_last` all ranks have equally many and the last `size % world_size` images of the order
    wait for another epoch; without, the first ranks have one more.
    """

    def __init__(
        self,
        size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
    ) -> None:
        """
        Args:
            size: number of images.
            rank: which worker this is, from 0.
            world_size: number of workers.
            seed: with the epoch it decides the order.
            shuffle: False keeps the order of the data set.
            drop_last: give every rank equally many.

        Raises:
            ConfigError: a number out of its range, or so few images that a rank would get none.
        """
        for name, value, right in (
            ("world_size", world_size, world_size >= 1),
            ("rank", rank, 0 <= rank < world_size),
            ("seed", seed, seed >= 0),
        ):
            require(right, f"sampler.{name}: {value}; need 0 <= rank < world_size and seed >= 0")
        enough = size >= (world_size if drop_last else 1)
        require(enough, f"sampler.size: {size} images for {world_size} workers; give each at least one")
        self._size = size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration takes."""
        self.epoch = epoch

    def __len__(self) -> int:
        rest = 0 if self._drop_last else int(self._rank < self._size % self._world_size)
        return self._size // self._world_size + rest

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self._size)
        if self._shuffle:
            np.random.default_rng((self._seed, self.epoch)).shuffle(order)
        mine = order[self._rank :: self._world_size][: len(self)]
        return iter(mine.tolist())
