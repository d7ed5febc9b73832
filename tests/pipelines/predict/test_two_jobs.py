"""Two predictions on one output, started together: one runs, always, and the other is told who does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.predict.config import PredictConfig
from pipelines.predict.run import predict
from sparse_detr.errors import OutputExistsError

ROUNDS = 20


class ReachedRayError(Exception):
    """Raised in place of starting Ray."""


def _jobs(config: PredictConfig, barrier: Any, results: Any) -> None:
    for number in range(ROUNDS):

        @contextmanager
        def no_ray(number: int = number) -> Iterator[Any]:
            results.put((number, "ran", ""))
            barrier.wait()
            raise ReachedRayError
            yield

        barrier.wait()
        try:
            predict(replace(config, output=f"{config.output}/{number}"), connect=no_ray)
        except ReachedRayError:
            continue
        except OutputExistsError as error:
            results.put((number, "refused", str(error)))
            barrier.wait()


def test_of_two_that_start_together_one_runs(model_folder: str, collection: Path, tmp_path: Path) -> None:
    config = PredictConfig(model=model_folder, images=str(collection), output=str(tmp_path), short_side=64, max_side=96)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    jobs = [context.Process(target=_jobs, args=(config, barrier, results)) for _ in range(2)]
    for job in jobs:
        job.start()
    seen = [results.get(timeout=120) for _ in range(2 * ROUNDS)]
    for job in jobs:
        job.join(60)
    for number in range(ROUNDS):
        found = [(what, words) for n, what, words in seen if n == number]
        assert sorted(what for what, _ in found) == ["ran", "refused"]
        assert all("is held by a job that runs" in words for what, words in found if what == "refused")
