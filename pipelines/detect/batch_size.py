"""The batch size at which a predictor is fastest: measured, on images of the size that the model gets."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from pipelines.detect.images import ReadyImage
from sparse_detr.records import ImageSize

LARGEST = 64
"""Larger batches are faster nowhere that this was tried, and rarely full: only images of one shape share one."""
GAIN = 1.03
"""A larger batch must be this much faster, else the smaller one, which memory and rare shapes like better, is taken."""
SECONDS = 0.5
"""Each size is timed for so long, and twice at least."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Images a second in batches of one size."""

    batch_size: int
    images_per_second: float


def speeds(
    run: Callable[[Sequence[ReadyImage]], Any], size: ImageSize, *, most: int = LARGEST, processes: int = 1
) -> Iterator[Speed]:
    """Time batches of 1, 2, 4, ... images until they gain no more, or memory would be short.

    Args:
        run: as `Predictor.run`.
        size: of the images, which are of 4:3 here: other shapes have about as many pixels.
        most: largest batch to try.
        processes: so many like this one will share the memory.
    """
    pixels = torch.rand(
        (3, size.short_side, min(size.max_side, round(size.short_side * 4 / 3))),
        generator=torch.Generator().manual_seed(0),
    )
    height, width = pixels.shape[1:]
    rest = psutil.Process().memory_info().rss
    best, behind, count = 0.0, 0, 1
    while count <= min(most, LARGEST) and behind < 2:
        images = [ReadyImage(index=i, key="blank", size=(height, width), pixels=pixels) for i in range(count)]
        try:
            speed = count / _seconds(run, images)
        except (RuntimeError, MemoryError):  # torch's own out of memory is a RuntimeError
            return
        yield Speed(count, speed)
        behind = 0 if speed > GAIN * best else behind + 1
        best = max(best, speed)
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - rest
        if 2 * taken * processes > psutil.virtual_memory().available:
            return
        count *= 2


def fastest(measured: Iterable[Speed]) -> int:
    """The smallest batch size that is about as fast as the fastest; 1 where nothing was measured."""
    found = sorted(measured, key=lambda speed: speed.batch_size)
    best = max((speed.images_per_second for speed in found), default=0.0)
    return next((speed.batch_size for speed in found if speed.images_per_second * GAIN >= best), 1)


def _seconds(run: Callable[[Sequence[ReadyImage]], Any], images: Sequence[ReadyImage]) -> float:
    """Of one batch, the quickest of several; the first, which warms up, does not count."""
    run(images)
    times: list[float] = []
    while len(times) < 2 or sum(times) < SECONDS:
        started = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - started)
    return min(times)
