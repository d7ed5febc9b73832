"""Every image at most once an epoch, in the same micro-batches whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_detr.data.sampler import Draw, MicroBatchSampler, share_of
from sparse_detr.errors import ConfigError


def epoch_of(size: int, epoch: int = 0, first_step: int = 0, **options: int) -> list[list[Draw]]:
    sampler = MicroBatchSampler(size, **options)
    sampler.set_epoch(epoch, first_step)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def items(micro_batches: Sequence[Sequence[Draw]]) -> list[int]:
    return [draw.item for micro_batch in micro_batches for draw in micro_batch]


@settings(deadline=None)
@given(
    steps=st.integers(1, 6),
    extra=st.integers(0, 30),
    count=st.integers(1, 6),
    micro_batch=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    data=st.data(),
)
def test_ranks_share_the_same_steps(
    steps: int, extra: int, count: int, micro_batch: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    world_size = data.draw(st.integers(1, count))
    global_batch = count * micro_batch
    size = steps * global_batch + extra
    shape = {"global_batch": global_batch, "micro_batch": micro_batch, "seed": seed}
    whole = epoch_of(size, epoch, **shape)
    shares = [epoch_of(size, epoch, rank=rank, world_size=world_size, **shape) for rank in range(world_size)]

    assert len(whole) == size // global_batch * count
    assert len(set(items(whole))) == len(whole) * micro_batch
    assert set(items(whole)) <= set(range(size))
    per_step = [len(share) // (size // global_batch) for share in shares]
    assert max(per_step) - min(per_step) <= 1
    assert min(per_step) >= 1
    dealt = [
        micro_batch
        for step in range(size // global_batch)
        for share, few in zip(shares, per_step, strict=True)
        for micro_batch in share[step * few : (step + 1) * few]
    ]
    assert dealt == whole


@settings(deadline=None)
@given(first_step=st.integers(0, 7))
def test_an_epoch_goes_on_where_it_was_left(first_step: int) -> None:
    shape = {"global_batch": 6, "micro_batch": 2, "seed": 1}
    whole = epoch_of(40, epoch=3, **shape)
    assert epoch_of(40, epoch=3, first_step=first_step, **shape) == whole[3 * first_step :]


def test_the_same_seed_and_epoch_give_the_same_order_and_others_do_not() -> None:
    assert epoch_of(100, epoch=3, seed=5, global_batch=10) == epoch_of(100, epoch=3, seed=5, global_batch=10)
    orders = {
        tuple(items(epoch_of(100, epoch=epoch, seed=seed, global_batch=10))) for epoch in range(4) for seed in range(4)
    }
    assert len(orders) == 16


def test_what_is_dropped_changes_with_the_epoch() -> None:
    dropped = {frozenset(range(10)) - set(items(epoch_of(10, epoch, global_batch=9))) for epoch in range(20)}
    assert len(dropped) > 3


def test_each_image_of_each_epoch_is_augmented_otherwise() -> None:
    draws = [draw for epoch in range(3) for micro_batch in epoch_of(8, epoch, global_batch=4) for draw in micro_batch]
    assert len({draw.generator().random() for draw in draws}) == 24
    assert draws[5].generator().random() == draws[5].generator().random()


def test_uneven_shares_are_neighbours() -> None:
    assert [list(share_of(4, rank, 3)) for rank in range(3)] == [[0, 1], [2], [3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2, "micro_batch": 1}, r"sampler\.rank: 2 of 2"),
        ({"rank": -1}, r"sampler\.rank: -1"),
        ({"world_size": 0}, r"sampler\.rank: 0 of 0"),
        ({"seed": -1}, r"sampler\.seed: -1"),
        ({"global_batch": 11}, r"sampler\.global_batch: 11 of 10 images"),
        ({"micro_batch": 3}, r"sampler\.micro_batch: 3 is no divisor of global_batch: 4"),
        ({"world_size": 3, "micro_batch": 2}, r"training\.workers: 3, but a step has 2 micro-batches; give at most 2"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MicroBatchSampler(10, **{"global_batch": 4, **options})
