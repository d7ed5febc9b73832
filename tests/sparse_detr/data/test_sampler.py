"""Every image at most once an epoch, whatever the number of ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_detr.data.sampler import EpochSampler
from sparse_detr.errors import ConfigError

ranks_of = st.integers(1, 9)


def shares(size: int, world_size: int, epoch: int = 0, **options: int) -> list[list[int]]:
    found = []
    for rank in range(world_size):
        sampler = EpochSampler(size, rank=rank, world_size=world_size, **options)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    return found


@given(extra=st.integers(0, 200), world_size=ranks_of, seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_ranks_share_an_epoch_without_duplicates(extra: int, world_size: int, seed: int, epoch: int) -> None:
    size = world_size + extra
    found = shares(size, world_size, epoch, seed=seed)
    seen = [item for share in found for item in share]
    assert {len(share) for share in found} == {size // world_size}
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(size))


@given(size=st.integers(50, 300), seed=st.integers(0, 99), epoch=st.integers(0, 99), world_size=ranks_of)
def test_the_order_is_that_of_one_rank_dealt_out(size: int, seed: int, epoch: int, world_size: int) -> None:
    (whole,) = shares(size, 1, epoch, seed=seed)
    dealt = [item for step in zip(*shares(size, world_size, epoch, seed=seed), strict=True) for item in step]
    assert dealt == whole[: len(dealt)]


def test_the_same_seed_and_epoch_give_the_same_order_and_others_do_not() -> None:
    assert shares(100, 1, epoch=3, seed=5) == shares(100, 1, epoch=3, seed=5)
    orders = [tuple(shares(100, 1, epoch=epoch, seed=seed)[0]) for epoch in range(4) for seed in range(4)]
    assert len(set(orders)) == 16


def test_what_is_dropped_changes_with_the_epoch() -> None:
    dropped = {frozenset(range(10)) - {item for share in shares(10, 3, epoch) for item in share} for epoch in range(20)}
    assert len(dropped) > 3


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"rank": 2, "world_size": 2}, "rank: 2"),
        ({"rank": -1}, "rank: -1"),
        ({"world_size": 0}, "world_size: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"rank": 0, "world_size": 11}, "size: 10 images for 11 workers"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(options: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{field}"):
        EpochSampler(10, **options)
