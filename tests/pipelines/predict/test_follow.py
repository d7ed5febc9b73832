"""A run that is followed while Ray gives up under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from pipelines.predict.config import PredictConfig
from pipelines.predict.follow import Tally, follow
from pipelines.predict.parts import SUMMARY, Part, Stamp
from pipelines.predict.resume import Journal, plan_tasks
from sparse_detr.storage.lease import held
from sparse_detr.storage.location import locate

TASK_ERROR = RayTaskError("work", "Traceback ...", ValueError("a bug"))


class Ray:
    """Does a task or a few at each start, and then gives up."""

    def __init__(self, *starts: tuple[int, RayError | None]) -> None:
        self.starts = list(starts)
        self.seen: list[list[int]] = []

    def __call__(self, tasks: Sequence[pa.Table]) -> Iterator[pa.Table]:
        count, error = self.starts.pop(0)
        self.seen.append(sorted(first for task in tasks for first in task.column("first").to_pylist()))
        for task in tasks[:count]:
            rows = [
                asdict(Part(first=first, last=first + 3, size=1, sha256="", detections=0, errors=0)) | {"sample": []}
                for first in task.column("first").to_pylist()
            ]
            yield pa.Table.from_pylist(rows, schema=SUMMARY)
        if error is not None:
            raise error


def _follow(ray: Ray, folder: Path) -> Tally:
    tally = Tally(total=40, parts={})
    stamp = Stamp(fingerprint="f", manifest="m")
    config = PredictConfig(model="m", images="i", output=str(folder))
    with held(locate(folder)) as lease:
        follow(
            ray, plan_tasks([], 40, 4), tally, Journal(locate(folder), stamp), config=config, lease=lease, workers=2,
            on_progress=None,
        )  # fmt: skip
    return tally


def test_ray_is_started_again_on_what_is_left(tmp_path: Path) -> None:
    ray = Ray((3, ActorDiedError()), (2, ActorDiedError()), (99, None))
    tally = _follow(ray, tmp_path)
    assert sorted(tally.parts) == list(range(0, 40, 4))
    assert [len(firsts) for firsts in ray.seen] == [10, 7, 5]
    assert tally.new_images == 40


@pytest.mark.parametrize("starts", [[(0, ActorDiedError())], [(3, ActorDiedError()), (0, ActorDiedError())],
                                    [(3, TASK_ERROR)]])  # fmt: skip
def test_not_without_progress_and_not_after_a_bug(tmp_path: Path, starts: list[tuple[int, RayError]]) -> None:
    ray = Ray(*starts)
    with pytest.raises(RayError) as caught:
        _follow(ray, tmp_path)
    assert caught.value is starts[-1][1]
    assert ray.starts == []
