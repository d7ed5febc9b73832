from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch

from pipelines.detect.batch_size import LARGEST, Speed, fastest, speeds
from pipelines.detect.config import PredictorConfig
from pipelines.detect.images import ReadyImage
from pipelines.detect.predictor import Predictor
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError
from sparse_detr.records import ImageSize

SIZE = ImageSize(short_side=30, max_side=36)


def test_the_smallest_of_about_equal_speeds_is_taken() -> None:
    found = [Speed(1, 10.0), Speed(2, 19.0), Speed(4, 30.0), Speed(8, 30.5), Speed(16, 29.0)]
    assert fastest(found) == 4
    assert fastest(reversed(found)) == 4
    assert fastest([]) == 1


def test_sizes_are_tried_until_two_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A played machine: 1 s a batch until 4 images, and as much for each four above."""
    now = 0.0
    tried: list[int] = []

    def run(images: Sequence[ReadyImage]) -> None:
        nonlocal now
        now += -(-len(images) // 4)
        tried.append(len(images))
        assert {tuple(image.pixels.shape) for image in images} == {(3, 30, 36)}

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    found = list(speeds(run, SIZE))
    assert [(speed.batch_size, speed.images_per_second) for speed in found] == [(1, 1), (2, 2), (4, 4), (8, 4), (16, 4)]
    assert fastest(found) == 4
    assert max(tried) == 16


def test_a_batch_that_does_not_fit_ends_the_search() -> None:
    def run(images: Sequence[ReadyImage]) -> None:
        time.sleep(0.002)
        if len(images) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert [speed.batch_size for speed in speeds(run, SIZE)] == [1, 2, 4, 8]
    assert [speed.batch_size for speed in speeds(run, SIZE, most=3)] == [1, 2]
    assert max(speed.batch_size for speed in speeds(lambda _: time.sleep(0.002), SIZE)) <= LARGEST


def test_memory_that_the_next_size_would_not_find_ends_the_search() -> None:
    """4 MB an image are nothing for one process, and too much for so many."""

    def run(images: Sequence[ReadyImage]) -> None:
        torch.ones(len(images) << 20).sum()
        time.sleep(0.002)

    assert len(list(speeds(run, SIZE))) > 1
    assert len(list(speeds(run, SIZE, processes=10**9))) == 1


def test_a_predictor_measures_itself(model: SparseDetr) -> None:
    predictor = Predictor(model, PredictorConfig(short_side=32, max_side=32, batch_size="auto"))
    images = [torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8).numpy() for _ in range(3)]
    assert all(result.detections is not None for result in predictor(images))
    assert predictor.batch_size in (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize("value", [0, -1, "fast", 2.0])
def test_what_is_no_batch_size_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        PredictorConfig(batch_size=value)  # type: ignore[arg-type]
