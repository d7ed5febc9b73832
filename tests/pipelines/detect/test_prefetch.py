"""Blocks with their images in order, however threads finish, and never more in memory than there is room for."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pipelines.detect.images import ImageRef, ImageResult
from pipelines.detect.prefetch import Block, Loaded, Prefetch
from sparse_detr.errors import StoreUnavailableError


def _blocks(*lengths: int) -> list[Block]:
    names = iter(range(sum(lengths)))
    return [
        Block(images=[ImageRef(index=i, key=str(i)) for _, i in zip(range(n), names, strict=False)]) for n in lengths
    ]


class Loader:
    """Loads in threads, out of order, and counts what is loaded and not yet taken."""

    def __init__(self, fails: int | None = None) -> None:
        self.pool = ThreadPoolExecutor(4)
        self.fails = fails
        self.begun: list[int] = []

    def submit(self, _block: Block, image: ImageRef) -> Future[Loaded]:
        self.begun.append(image.index)
        return self.pool.submit(self._load, image)

    def _load(self, image: ImageRef) -> Loaded:
        time.sleep(random.Random(image.index).random() / 200)
        if image.index == self.fails:
            raise StoreUnavailableError("away")
        return ImageResult(index=image.index, key=image.key)


@pytest.mark.parametrize("room", [1, 3, 50])
@pytest.mark.parametrize("lengths", [(1,), (5, 3, 4), (0, 2, 0, 0, 3), (20, 20)])
def test_every_image_comes_once_in_order_and_in_its_block(room: int, lengths: tuple[int, ...]) -> None:
    loader, blocks = Loader(), _blocks(*lengths)
    seen: list[int] = []
    for number, (block, loaded) in enumerate(Prefetch(blocks, loader.submit, room)):
        assert block is blocks[number]
        for item in loaded:
            assert isinstance(item, ImageResult)
            seen.append(item.index)
            assert len(loader.begun) - len(seen) < room
    assert seen == list(range(sum(lengths)))


def test_the_next_block_is_begun_before_this_one_ends_and_none_before_its_turn() -> None:
    asked: list[int] = []

    def blocks() -> Iterator[Block]:
        for number, block in enumerate(_blocks(4, 4, 4)):
            asked.append(number)
            yield block

    loader = Loader()
    entries = iter(Prefetch(blocks(), loader.submit, 6))
    _, loaded = next(entries)
    assert asked == [0, 1]
    for _ in range(4):
        next(loaded)
    assert asked == [0, 1, 2]


def test_a_store_that_is_away_ends_it() -> None:
    loader = Loader(fails=2)
    with pytest.raises(StoreUnavailableError):
        [list(loaded) for _, loaded in Prefetch(_blocks(4, 4), loader.submit, 3)]
    loader.pool.shutdown()
    assert max(loader.begun) < 6
