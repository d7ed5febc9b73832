"""Images of this block and the next, loaded by threads while the model runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from pipelines.detect.images import ImageFailure, ImageRef, ImageResult, ReadyImage

Loaded = list[ReadyImage] | ImageResult
"""An image with its tiles, ready for the model; or a result with the reason why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Images that are detected together: the unit of work, and of a Parquet part."""

    images: Sequence[ImageRef]
    failures: Mapping[int, ImageFailure] = field(default_factory=dict)
    """Images that are known to be unusable, by their index; they are not loaded."""
    ready: Mapping[int, Loaded] = field(default_factory=dict)
    """Images that are loaded already, by their index."""
    one_by_one: bool = False
    """Batches of one image, where memory was short."""


Submit = Callable[[Block, ImageRef], "Future[Loaded]"]
"""Begins to load an image."""


@dataclass(slots=True)
class _Open:
    block: Block
    rest: Iterator[ImageRef]
    loading: deque[Future[Loaded]] = field(default_factory=deque)


class Prefetch:
    """Blocks with their loaded images, in order; at most `room` images are loading or loaded at a time."""

    def __init__(self, blocks: Iterable[Block], submit: Submit, room: int) -> None:
        self._blocks = iter(blocks)
        self._submit = submit
        self._room = room
        self._open: deque[_Open] = deque()
        self._count = 0

    def __iter__(self) -> Iterator[tuple[Block, Iterator[Loaded]]]:
        """Each block with an iterator over its images, which has to be read to its end before the next block."""
        try:
            while True:
                self._fill()
                if not self._open:
                    return
                yield self._open[0].block, self._images(self._open[0])
                self._open.popleft()
        finally:
            for entry in self._open:
                for future in entry.loading:
                    future.cancel()

    def _images(self, entry: _Open) -> Iterator[Loaded]:
        for _ in entry.block.images:
            self._fill()
            item = entry.loading.popleft().result()
            self._count -= 1
            yield item

    def _allowed(self) -> int:
        """Where memory was short, no image is loaded before the one ahead of it is done."""
        return 1 if any(entry.block.one_by_one for entry in self._open) else self._room

    def _fill(self) -> None:
        while self._count < self._allowed():
            image = next(self._open[-1].rest, None) if self._open else None
            if image is not None:
                self._open[-1].loading.append(self._submit(self._open[-1].block, image))
                self._count += 1
                continue
            block = next(self._blocks, None)
            if block is None:
                return
            self._open.append(_Open(block, iter(block.images)))
