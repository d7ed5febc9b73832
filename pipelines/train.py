"""Training as a job of Ray Train: workers, checkpoints in the store, one MLflow run, one result.

`train_output` says what lies where in the output folder.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from pipelines.config import RunConfig
from pipelines.connections import DriverAccess
from pipelines.progress import OnProgress, ProgressBoard
from pipelines.ray_session import prepare_environment
from pipelines.run_data import check_data
from pipelines.run_parts import StartReport, absolute, initial_model, with_classes
from pipelines.run_start import OnStart, RunStart
from pipelines.run_tracking import address, open_tracker
from pipelines.tracking import Tracker
from pipelines.train_output import (
    CHECKPOINTS,
    best_checkpoint,
    claim_output,
    publish_model,
    write_result,
    write_run,
)
from pipelines.train_worker import WorkerTask, train_worker
from sparse_detr import errors
from sparse_detr.config_dict import to_dict
from sparse_detr.errors import ConfigError, SparseDetrError
from sparse_detr.records import Classes
from sparse_detr.storage import Location, check_access, locate

POLL_SECONDS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a training left behind."""

    checkpoint: str
    """Path or URI of the model folder with the best held-out AP."""
    history: tuple[Mapping[str, float], ...]
    """Metrics of every epoch: loss terms, `ap` and COCO's other numbers, `lr`, `images_per_second`, ..."""
    seconds: float
    """From the call to the result."""
    images_per_second: float
    """Mean training throughput of all workers together, evaluation left out."""
    start: RunStart
    """What was found before the first step: data, starting weights."""
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
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train on the Ray that this process is connected to (see `ray_session`).

    `on_start` is called before the workers start, with what was found until then, `on_progress` about three times a
    second, both in this thread. Ctrl-C leaves at once with KeyboardInterrupt; `ray.shutdown` (or leaving
    `ray_session`) ends the workers.

    Args:
        parent_run_id: MLflow run to nest this one under.
        tags: tags of the MLflow run.

    Raises:
        SparseDetrError: anything that the user can mend, found before the workers start or by one of them.
        ray.train.TrainingFailedError: workers died more often than `training.max_failures`.
    """
    started = time.perf_counter()
    prepare_environment()
    config = absolute(config)
    output = locate(config.output)
    check_access(output)
    data = check_data(config)
    config = with_classes(config, data.classes)
    require_cluster(config.training.workers, config.training.cpus_per_worker, config.training.use_gpu)
    start = RunStart(data=data, weights=_starting_weights(config, output, data.classes))
    continued = claim_output(output, config)
    if on_start is not None:
        on_start(start)
    with open_tracker(config, parent_run_id=parent_run_id, run_id=continued, tags=tags) as tracker:
        write_run(output, config, tracker.run_id)
        start.record(tracker)
        history, best = _fit(config, output, tracker, on_progress)
        model = publish_model(output, best)
        tracker.model(model.uri)
        seconds, speed = time.perf_counter() - started, mean_throughput(history)
        tracker.metrics({"seconds": seconds, "mean_images_per_second": speed}, len(history))
    summary = {"history": history, "seconds": seconds, "images_per_second": speed, "model": model.uri}
    write_result(output, summary)
    return TrainResult(
        checkpoint=model.uri,
        history=tuple(history),
        seconds=seconds,
        images_per_second=speed,
        start=start,
        run_id=tracker.run_id,
    )


def _starting_weights(config: RunConfig, output: Location, classes: Classes) -> StartReport | None:
    """What the workers will start from, found out here, where it can be shown; None where they go on instead."""
    if config.existing == "resume" and output.child(CHECKPOINTS).exists():
        return None
    return initial_model(config, classes)[1]


def require_cluster(workers: int, cpus_per_worker: int, use_gpu: bool) -> None:
    """Refuse what could never start: Ray would wait for the resources for ever, without a word.

    Raises:
        ConfigError: the cluster has fewer CPUs or GPUs than all workers take together.
    """
    have: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    needs = {"CPU": workers * cpus_per_worker, "GPU": workers if use_gpu else 0}
    for kind, need in needs.items():
        if need > have.get(kind, 0):
            raise ConfigError(
                f"training.workers: {workers} take {need} {kind}s together, the cluster has {have.get(kind, 0):g}; "
                "lower training.workers or training.cpus_per_worker, or connect to a larger cluster"
            )


def mean_throughput(history: Sequence[Mapping[str, float]]) -> float:
    """Images a second over all epochs."""
    seconds = sum(metrics["train_seconds"] for metrics in history)
    images = sum(metrics["images_per_second"] * metrics["train_seconds"] for metrics in history)
    return images / seconds if seconds else 0.0


def _fit(
    config: RunConfig, output: Location, tracker: Tracker, on_progress: OnProgress | None
) -> tuple[list[dict[str, float]], str]:
    """Run the workers to the end; the history, and the folder name of the best checkpoint."""
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    access = DriverAccess(os.environ)
    task = WorkerTask(config=to_dict(config), board=board, run=address(tracker), access=access)
    trainer = ray.train.torch.TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray forgets that a worker may return something.
        train_loop_config={"task": task},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if config.training.use_gpu else "gloo"),
        scaling_config=_scaling(config),
        run_config=_ray_run(config, output),
    )
    try:
        result = _fit_in_background(trainer, board, on_progress)
    except ray.train.TrainingFailedError as error:
        _raise_mistake(board, error)
        raise
    _raise_mistake(board, None)
    found = [(Path(checkpoint.path).name, metrics) for checkpoint, metrics in result.best_checkpoints or []]
    return list(result.return_value or []), best_checkpoint(found)


def _scaling(config: RunConfig) -> ray.train.ScalingConfig:
    training = config.training
    resources = {"CPU": float(training.cpus_per_worker)} | ({"GPU": 1.0} if training.use_gpu else {})
    return ray.train.ScalingConfig(
        num_workers=training.workers, use_gpu=training.use_gpu, resources_per_worker=resources
    )


def _ray_run(config: RunConfig, output: Location) -> ray.train.RunConfig:
    return ray.train.RunConfig(
        name=CHECKPOINTS,
        storage_path=output.path,
        storage_filesystem=output.filesystem,
        failure_config=ray.train.FailureConfig(max_failures=config.training.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(
            num_to_keep=config.training.keep_checkpoints, checkpoint_score_attribute="ap", checkpoint_score_order="max"
        ),
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # V2 has it.
    )


def _fit_in_background(trainer: Any, board: Any, on_progress: OnProgress | None) -> Any:
    """`trainer.fit()` beside this thread, which stays free for progress and for Ctrl-C.

    In the main thread Ray would replace the handler of SIGINT for good, and end a run that Ctrl-C stopped as if it
    were complete.
    """
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    seen = None
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        progress = ray.get(board.latest.remote())
        if on_progress is not None and progress is not None and progress != seen:
            seen = progress
            on_progress(progress)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def _raise_mistake(board: Any, cause: BaseException | None) -> None:
    """Raise in the driver what a worker noted as the user's mistake."""
    mistake = ray.get(board.mistake.remote())
    if mistake is not None:
        kind, message = mistake
        found = getattr(errors, kind, SparseDetrError)
        raise found(message) from cause
