"""Which images make up each micro-batch of an epoch, and which micro-batches a rank computes.

A step of the global batch is cut into micro-batches, numbered from 0. Seed and epoch decide what is in each of them,
the number of ranks only who computes it: so a step is the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from sparse_detr.errors import require


class Draw(NamedTuple):
    """One image of an epoch, and what its augmentation follows from."""

    item: int
    """Number of the image in the data set."""
    seed: tuple[int, int, int]
    """Seed of the training, epoch, position in the epoch's order."""

    def generator(self) -> np.random.Generator:
        """A new generator, always the same."""
        # The spawn key keeps it apart from the generator of the order, which begins with the same numbers.
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(1,)))


def share_of(count: int, rank: int, world_size: int) -> range:
    """The numbers, of `count` micro-batches, that fall to a rank: neighbours, as many as any other rank's or one more.

    Raises:
        ConfigError: no such rank, or there are too few for every rank to get one.
    """
    require(
        world_size >= 1 and 0 <= rank < world_size,
        f"sampler.rank: {rank} of {world_size}; need 0 <= rank < world_size",
    )
    require(
        count >= world_size,
        f"training.workers: {world_size}, but a step has {count} micro-batches; give at most {count} workers, or a "
        "smaller training.micro_batch",
    )
    least, more = divmod(count, world_size)
    first = rank * least + min(rank, more)
    return range(first, first + least + (rank < more))


class MicroBatchSampler(Sampler[list[Draw]]):
    """The micro-batches of one rank, step after step, as a DataLoader's `batch_sampler`.

    An epoch has as many steps as the global batch fits into the images; the images that are left wait for another
    epoch, which has another order.
    """

    def __init__(
        self,
        size: int,
        *,
        global_batch: int,
        micro_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            size: number of images.
            global_batch: images of one step, over all ranks.
            micro_batch: images of one micro-batch, a divisor of `global_batch`, which it is by default.
            rank: which worker this is, from 0.
            world_size: number of workers.
            seed: with the epoch it decides the order.

        Raises:
            ConfigError: a number out of its range, or fewer images than a step needs.
        """
        micro_batch = micro_batch or global_batch
        require(seed >= 0, f"sampler.seed: {seed}; give 0 or more")
        require(
            1 <= global_batch <= size,
            f"sampler.global_batch: {global_batch} of {size} images; give 1 up to their number",
        )
        require(
            micro_batch >= 1 and global_batch % micro_batch == 0,
            f"sampler.micro_batch: {micro_batch} is no divisor of global_batch: {global_batch}; give one",
        )
        self._size, self._seed = size, seed
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._numbers = share_of(global_batch // micro_batch, rank, world_size)
        self._epoch = self._first_step = 0

    @property
    def steps(self) -> int:
        """Steps of a whole epoch."""
        return self._size // self._global_batch

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this rank in one step."""
        return len(self._numbers)

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch that the next iteration gives, and the step of it that it begins with."""
        self._epoch, self._first_step = epoch, first_step

    def __len__(self) -> int:
        return max(0, self.steps - self._first_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.arange(self._size)
        np.random.default_rng((self._seed, self._epoch)).shuffle(order)
        for step in range(self._first_step, self.steps):
            for number in self._numbers:
                first = step * self._global_batch + number * self._micro_batch
                yield [
                    Draw(item=int(order[place]), seed=(self._seed, self._epoch, place))
                    for place in range(first, first + self._micro_batch)
                ]
