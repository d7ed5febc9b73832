from __future__ import annotations

import pytest
import torch

from pipelines.train.engine.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_images_a_second_and_the_share_of_waiting() -> None:
    clock = Clock()
    pace = Pace(4, torch.device("cpu"), clock)

    def batches() -> list[int]:
        return list(range(3))

    def slowly() -> object:
        for batch in batches():
            clock.now += 0.5  # until the batch is there
            yield batch

    assert set(pace.numbers()) == {"memory_mib"}
    seen = []
    for batch in pace.steps(slowly()):  # type: ignore[arg-type]
        seen.append(batch)
        clock.now += 1.5  # the step
    assert seen == [0, 1, 2]
    found = pace.numbers()
    assert found["images_per_second"] == pytest.approx(3 * 4 / 6.0)
    assert found["data_wait"] == pytest.approx(0.25)
    assert pace.waited == pytest.approx(1.5)
    assert 50 < found["memory_mib"] < 50_000


def test_an_epoch_begins_anew_and_old_steps_are_forgotten() -> None:
    clock = Clock()
    pace = Pace(1, torch.device("cpu"), clock)
    for number, _ in enumerate(pace.steps(range(60))):
        clock.now += 10.0 if number < 40 else 1.0
    assert pace.numbers()["images_per_second"] == pytest.approx(1.0)
    pace.begin()
    assert pace.waited == 0.0
    assert "images_per_second" not in pace.numbers()
