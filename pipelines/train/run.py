"""Training as a job of Ray Train: workers, checkpoints in the store, one MLflow run, one result.

`output.py` says what is where in the output folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pipelines.cluster.resources import require_cluster
from pipelines.cluster.session import Connect, ray_session
from pipelines.recipes.config import RunConfig
from pipelines.tracking.tracker import Tracker
from pipelines.tracking.training_run import open_tracker
from pipelines.train.engine.progress import OnProgress
from pipelines.train.output import (
    begin_run,
    claim_output,
    continued_run,
    publish_model,
    read_broken_images,
    write_result,
)
from pipelines.train.preflight import OnStart, RunStart, preflight
from sparse_detr.storage.location import Location

Launch = Callable[
    [RunConfig, Location, Tracker, OnProgress | None],
    tuple[list[dict[str, float]], str],
]
"""Runs the workers of a training to the end, as `launch.fit` does; gives the history, and the folder name of the best
checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Results of a training."""

    checkpoint: str
    """Path or URI of the model folder with the best validation AP."""
    history: tuple[Mapping[str, float], ...]
    """Metrics of every epoch: loss terms, `ap` and COCO's other numbers, `lr`, `images_per_second`, ..."""
    seconds: float
    """From the call to the result."""
    images_per_second: float
    """Mean training throughput of all workers together, evaluation left out."""
    start: RunStart
    """Findings before the first step: data, starting weights."""
    run_id: str | None = None
    """MLflow run."""

    @property
    def best(self) -> Mapping[str, float]:
        """Metrics of the epoch with the best AP."""
        return max(self.history, key=lambda metrics: metrics.get("ap", -1.0))


def train(
    config: RunConfig,
    *,
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
    connect: Connect = ray_session,
    launch: Launch | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train on the Ray that this process is connected to, or that `connect` opens once all else is checked.

    `on_start` is called before the workers start, with what was found until then, in this thread; `on_progress` about
    three times a second, in another one, which has ended when this returns. Ctrl-C leaves at once with
    KeyboardInterrupt; `ray.shutdown` (or leaving `ray_session`) ends the workers.

    Args:
        launch: runs the workers; by default `launch.fit`, with Ray Train.
        parent_run_id: MLflow run to nest this one under.
        tags: tags of the MLflow run.

    Raises:
        SparseDetrError: anything that the user can fix, found before the workers start or by one of them.
        ray.train.TrainingFailedError: workers died more often than `training.max_failures`.
    """
    started = time.perf_counter()
    checked = preflight(config)
    config, output, start = checked.config, checked.output, checked.start
    # Refused before Ray starts; deleted once the cluster has room.
    claim = claim_output(output, config)
    config, continued = continued_run(claim, config)
    with ExitStack() as stack:
        session = stack.enter_context(connect())
        training = config.training
        require_cluster(training.workers, training.cpus_per_worker, training.use_gpu, session.resources)
        claim.clear()
        if on_start is not None:
            on_start(start)
        tracker = stack.enter_context(open_tracker(config, parent_run_id=parent_run_id, run_id=continued, tags=tags))
        begin_run(output, config, tracker.run_id)
        start.record(tracker)
        history, best = (launch or _fit)(config, output, tracker, on_progress)
        model = publish_model(output, best)
        tracker.model(model.uri)
        seconds, speed = time.perf_counter() - started, mean_throughput(history)
        tracker.metrics({"seconds": seconds, "mean_images_per_second": speed}, len(history))
    summary = {"history": history, "seconds": seconds, "images_per_second": speed, "model": model.uri}
    write_result(output, summary | {"broken_images": read_broken_images(output)})
    return TrainResult(
        checkpoint=model.uri,
        history=tuple(history),
        seconds=seconds,
        images_per_second=speed,
        start=start,
        run_id=tracker.run_id,
    )


def _fit(
    config: RunConfig, output: Location, tracker: Tracker, on_progress: OnProgress | None
) -> tuple[list[dict[str, float]], str]:
    # Imported late: ray.train takes 4 s, and what a user can fix is said before.
    from pipelines.train.launch import fit

    return fit(config, output, tracker, on_progress)


def mean_throughput(history: Sequence[Mapping[str, float]]) -> float:
    """Images a second over all epochs."""
    seconds = sum(metrics["train_seconds"] for metrics in history)
    images = sum(metrics["images_per_second"] * metrics["train_seconds"] for metrics in history)
    return images / seconds if seconds else 0.0
