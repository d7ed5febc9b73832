"""Training as a job of Ray Train: workers, checkpoints in the store, one MLflow run, one result.

`output.py` says what is where in the output folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pipelines.cluster.resources import require_cluster
from pipelines.cluster.session import Connect, ray_session
from pipelines.recipes.config import RunConfig
from pipelines.tracking.tracker import Registration, Tracker
from pipelines.tracking.training_run import open_tracker
from pipelines.train.curves import record_curves
from pipelines.train.engine.checkpoint_store import Position
from pipelines.train.engine.progress import Listeners, OnNotice, OnProgress
from pipelines.train.output import (
    begin_run,
    claim_output,
    continued_run,
    publish_model,
    read_broken_images,
    write_result,
)
from pipelines.train.preflight import CheckedData, OnStart, RunStart, preflight
from pipelines.train.record import EVENTS_FILE, Fitted
from sparse_detr.storage.location import Location

Launch = Callable[[RunConfig, Location, Tracker, Listeners], Fitted]
"""Runs the workers of a training to the end, as `launch.fit` does."""


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
    best: Mapping[str, float]
    """Metrics of the epoch whose model this is: the one with the best AP."""
    registered: str | None = None
    """`models:/name/version` of the model, where it was registered."""


def metrics_of(checkpoint: str, history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Metrics of the epoch that a checkpoint of this folder name was written after."""
    place = Position.of(checkpoint)
    of_epoch = [row for row in history if place is not None and row.get("epoch") == place.begun]
    return of_epoch[0] if of_epoch else history[-1]


def train(
    config: RunConfig,
    *,
    on_start: OnStart | None = None,
    on_progress: OnProgress | None = None,
    on_notice: OnNotice | None = None,
    connect: Connect = ray_session,
    launch: Launch | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train on the Ray that this process is connected to, or that `connect` opens once all else is checked.

    `on_start` is called before the workers start, with what was found until then, in this thread; `on_progress` about
    three times a second, and `on_notice` with a line for the user, in another one, which has ended when this returns.
    In the main thread Ctrl-C and SIGTERM end the training with a checkpoint, and then with `Interrupted`, a
    KeyboardInterrupt; see `training.stop_seconds`. `ray.shutdown` (or leaving `ray_session`) ends the workers.

    Args:
        launch: runs the workers; by default `launch.fit`, with Ray Train.
        parent_run_id: MLflow run to nest this one under.
        tags: tags of the MLflow run.

    Raises:
        SparseDetrError: anything that the user can fix, found before the workers start or by one of them.
        IncompleteError: workers died more often than `training.max_failures`; the run can be resumed.
    """
    started = time.perf_counter()
    checked = preflight(config)
    config, output, start = checked.config, checked.output, checked.start
    # Refused before Ray starts; deleted once the cluster has room.
    claim = claim_output(output, config)
    config, continued = continued_run(claim, config)
    with ExitStack() as stack:
        session = stack.enter_context(connect())
        require_cluster(config.training, session.resources)
        claim.clear()
        if on_start is not None:
            on_start(start)
        tracker = stack.enter_context(open_tracker(config, parent_run_id=parent_run_id, run_id=continued, tags=tags))
        begin_run(output, config, tracker.run_id)
        start.record(tracker)
        listeners = Listeners(on_progress=on_progress, on_notice=on_notice)
        fitted = (launch or _fit)(config, output, tracker, listeners)
        model = publish_model(output, fitted.best)
        best, speed = metrics_of(fitted.best, fitted.history), mean_throughput(fitted.history)
        registered = tracker.model(model.uri, _registration(config, best.get("ap"), start.data))
        seconds = time.perf_counter() - started
        _record(fitted, best, {"seconds": seconds, "mean_images_per_second": speed}, tracker, on_notice)
    found = {"history": fitted.history, "seconds": seconds, "images_per_second": speed, "model": model.uri}
    more = {"registered_model": registered, "unwritten_metrics": fitted.unwritten, "record": fitted.record}
    write_result(output, found | more | {"broken_images": read_broken_images(output)})
    return TrainResult(
        checkpoint=model.uri,
        history=tuple(fitted.history),
        best=best,
        seconds=seconds,
        images_per_second=speed,
        start=start,
        run_id=tracker.run_id,
        registered=registered,
    )


def _record(
    fitted: Fitted, best: Mapping[str, float], pace: Mapping[str, float], tracker: Tracker, say: OnNotice | None
) -> None:
    """What is told of the whole run: curves, restarts, and points that MLflow lacks."""
    record_curves(fitted.history, best, tracker)
    tracker.text(json.dumps(fitted.record, indent=1), EVENTS_FILE)
    lost = {name: float(fitted.record.get(name, 0)) for name in ("steps_redone", "seconds_lost")}
    restarts = float(len(fitted.record.get("restarts", ())))
    tracker.metrics({**pace, **lost, "restarts": restarts}, len(fitted.history))
    if fitted.unwritten:
        tracker.tags({"sparse_detr.unwritten_metrics": str(fitted.unwritten)})
        if say is not None:
            missing = f"{fitted.unwritten} points of the curves are missing in its run"
            say(f"MLflow did not answer: {missing}; result.json has all epochs")


def _registration(config: RunConfig, ap: float | None, data: CheckedData) -> Registration | None:
    if config.registered_model is None:
        return None
    (val,) = (used for used in data.used if used.name == "val")
    return Registration(name=config.registered_model, alias=config.model_alias, ap=ap, data=val.digest)


def _fit(config: RunConfig, output: Location, tracker: Tracker, listeners: Listeners) -> Fitted:
    # Imported late: ray.train takes 4 s, and what a user can fix is said before.
    from pipelines.train.launch import fit

    return fit(config, output, tracker, listeners)


def mean_throughput(history: Sequence[Mapping[str, float]]) -> float:
    """Images a second over all epochs."""
    seconds = sum(metrics["train_seconds"] for metrics in history)
    images = sum(metrics["images_per_second"] * metrics["train_seconds"] for metrics in history)
    return images / seconds if seconds else 0.0
