"""Work of one Ray Train worker: build the loop of its rank, restore it, run it, tell the driver how far it is."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from pipelines.cluster.access import DriverAccess
from pipelines.recipes.config import RunConfig
from pipelines.tracking.mlflow_tracker import END_SECONDS, KILLED_SECONDS, MlflowTracker
from pipelines.tracking.system_metrics import system_metrics
from pipelines.tracking.tracker import NullTracker, Tracker
from pipelines.train.broken_report import BrokenReport
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.checkpoint_store import CheckpointStore, Position
from pipelines.train.engine.checkpointer import Checkpointer
from pipelines.train.engine.loop import Metrics, TrainLoop
from pipelines.train.engine.news import Begun, StepDone
from pipelines.train.engine.pulse import PULSE, LeftError
from pipelines.train.engine.ranks import Ranks
from pipelines.train.output import checkpoints_of
from pipelines.train.pictures import TrainingPictures
from pipelines.train.rank_hooks import FirstRankHooks, RankHooks, tell
from sparse_detr.config_dict import from_dict
from sparse_detr.ops.self_check import self_test
from sparse_detr.storage.location import locate
from sparse_detr.storage.retry import patiently

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """Orders of the driver to its workers, as plain as Ray can send it."""

    config: dict[str, Any] = field(repr=False)
    """The run config as a dict. It and `run` may hold a tracking URI with a password, so no text shows them."""
    box: Any
    """Handle of the `NewsBox` actor."""
    run: tuple[str, str] | None = field(repr=False)
    """Tracking URI and id of the MLflow run that rank 0 writes to; None writes to none."""
    access: DriverAccess
    """Works by arriving: see there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResult:
    """What the first rank returns, through Ray."""

    history: list[Metrics]
    """Metrics of every whole epoch."""
    stopped: bool
    """Whether it ended early because it was asked to."""
    unwritten: int = 0
    """Points of curves that MLflow did not take, as its server is away."""


def train_worker(settings: dict[str, Any]) -> WorkerResult:
    """Train one rank to the end, or until it is asked to stop.

    Raises:
        SparseDetrError: a user error, which the controller takes for what it is.
        LeftError: the workers are to end, with a checkpoint, so that others go on.
    """
    task: WorkerTask = settings["task"]
    config = from_dict(RunConfig, task.config)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.training.cpus_per_worker)
    device = ray.train.torch.get_device() if config.training.use_gpu else torch.device("cpu")
    self_test(device.type)
    store = checkpoints_of(locate(config.output), config)
    checkpointer = Checkpointer(store, config.training) if rank == 0 else None
    tracker: Tracker = NullTracker()
    if rank == 0 and task.run is not None:
        tracker = MlflowTracker.attach(*task.run, resumed=True)
    hooks = RankHooks() if checkpointer is None else _first_hooks(task, config, checkpointer, tracker)
    newest = Ranks(rank, world_size).first(patiently(store.newest) if rank == 0 else None)
    loop = build_loop(config, rank=rank, world_size=world_size, device=device, hooks=hooks, restored=newest is not None)
    if newest is not None:
        _restore(loop, store, newest)
    if rank == 0:
        tell(task.box, Begun(workers=world_size, step=loop.step))
    for metrics in loop.history:
        # What an earlier worker could not write before it died; points that are there are left out.
        tracker.metrics(metrics, int(metrics["epoch"]))
    with system_metrics(tracker, f"node_{context.get_node_rank()}"):
        history = list(loop.run())
    PULSE.beat("storing")
    if checkpointer is not None:
        tell(task.box, StepDone(step=loop.step))
        checkpointer.close()
    # One that was stopped has little time, and goes on later, with what is in its checkpoint.
    unwritten = tracker.settle(KILLED_SECONDS if loop.stopped else END_SECONDS)
    if loop.stopped:
        # Also a meeting: the others must not end while the first still writes.
        reason = loop.ranks.first(PULSE.asked)
        if reason != "stop":
            raise LeftError(reason)
    return WorkerResult(history=history, stopped=loop.stopped, unwritten=unwritten)


def _first_hooks(task: WorkerTask, config: RunConfig, checkpointer: Checkpointer, tracker: Tracker) -> FirstRankHooks:
    reports = (BrokenReport(locate(config.output), tracker), TrainingPictures(config, tracker))
    return FirstRankHooks(task.box, tracker, checkpointer, reports)


def _restore(loop: TrainLoop, store: CheckpointStore, place: Position) -> None:
    """Go on from a checkpoint, the same on every rank."""
    with tempfile.TemporaryDirectory(prefix="sparse-detr-") as folder:
        patiently(store.fetch, place, Path(folder))
        loop.restore(Path(folder))
    logger.warning("rank %d continues from %s", loop.ranks.rank, store.folder.child(str(place)).uri)
