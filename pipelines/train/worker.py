"""Work of one Ray Train worker: build the loop of its rank, restore it, run it, tell the driver how far it is."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from pipelines.cluster.access import DriverAccess
from pipelines.cluster.user_errors import pack
from pipelines.recipes.config import RunConfig
from pipelines.tracking.mlflow_tracker import MlflowTracker
from pipelines.tracking.tracker import NullTracker, Tracker
from pipelines.train.broken_report import BrokenReport
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.checkpoint import Snapshot
from pipelines.train.engine.checkpoint_store import CheckpointStore
from pipelines.train.engine.checkpointer import Checkpointer
from pipelines.train.engine.hooks import NoHooks, Requests, Trained
from pipelines.train.engine.loop import Metrics, TrainLoop
from pipelines.train.engine.progress import StepProgress
from pipelines.train.output import checkpoints_of
from pipelines.train.pictures import TrainingPictures
from sparse_detr.config_dict import from_dict
from sparse_detr.errors import SparseDetrError
from sparse_detr.ops.self_check import self_test
from sparse_detr.storage.location import locate
from sparse_detr.storage.retry import patiently

logger = logging.getLogger(__name__)

POST_SECONDS = 0.5
"""Least time between two posts to the driver: each makes the device wait once, and the bar needs no more."""
CURVE_SECONDS = 10.0
"""Least time between two points of the curves over steps in MLflow: a call takes about 0.13 s on a busy server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTask:
    """Orders of the driver to its workers, as plain as Ray can send it."""

    config: dict[str, Any] = field(repr=False)
    """The run config as a dict. It and `run` may hold a tracking URI with a password, so no text shows them."""
    board: Any
    """Handle of the `ProgressBoard` actor."""
    run: tuple[str, str] | None = field(repr=False)
    """Tracking URI and id of the MLflow run that rank 0 writes to; None writes to none."""
    access: DriverAccess
    """Works by arriving: see there."""


class RayHooks(NoHooks):
    """Tells the driver and MLflow how far the loop is, and lets its checkpoints be written; for rank 0."""

    def __init__(
        self,
        board: Any,
        tracker: Tracker,
        pictures: TrainingPictures,
        checkpoints: Checkpointer,
        broken: BrokenReport | None = None,
    ) -> None:
        self._board = board
        self._tracker = tracker
        self._pictures = pictures
        self._checkpoints = checkpoints
        self._broken = broken
        self._posted = self._drawn = 0.0

    def requests(self, step: int) -> Requests:
        """Ask for a checkpoint when it is time."""
        return Requests(checkpoint=self._checkpoints.due(step))

    def step_done(self, progress: Callable[[], StepProgress]) -> None:
        """Post to the driver now and then; only such a step waits for the device, and none for the driver."""
        now = time.monotonic()
        if now - self._posted < POST_SECONDS:
            return
        self._posted = now
        found = progress()
        self._board.post.remote(found)
        if now - self._drawn >= CURVE_SECONDS:
            self._drawn = now
            self._tracker.metrics({f"step_{name}": value for name, value in found.metrics.items()}, found.step)

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Begin to write it."""
        self._checkpoints.take(snapshot)

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        """Post, log, begin to write a checkpoint, draw."""
        self._board.post.remote(progress)
        self._tracker.metrics(progress.metrics, progress.epoch)
        self._checkpoints.take(loop.snapshot())
        if self._broken is not None:
            self._broken.epoch_done(loop, progress)
        self._pictures.epoch_done(loop, progress)


def train_worker(settings: dict[str, Any]) -> list[Metrics]:
    """Train one rank to the end; returns the history, or nothing where an earlier attempt found a user error.

    Ray would restart the workers after any error; a user error is noted on the board first, and the
    next attempt ends at once.
    """
    task: WorkerTask = settings["task"]
    if ray.get(task.board.user_error.remote()) is not None:
        return []
    try:
        return list(_run(task))
    except SparseDetrError as error:
        ray.get(task.board.fail.remote(pack(error)))
        raise


def _run(task: WorkerTask) -> tuple[Metrics, ...]:
    config = from_dict(RunConfig, task.config)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.training.cpus_per_worker)
    device = ray.train.torch.get_device() if config.training.use_gpu else torch.device("cpu")
    self_test(device.type)
    store = checkpoints_of(locate(config.output), config)
    if rank != 0:
        loop = build_loop(config, rank=rank, world_size=world_size, device=device)
        _restore(loop, store)
        return loop.run()
    tracker: Tracker = NullTracker() if task.run is None else MlflowTracker.attach(*task.run)
    checkpointer = Checkpointer(store, config.training)
    broken = BrokenReport(locate(config.output), tracker)
    hooks = RayHooks(task.board, tracker, TrainingPictures(config, tracker), checkpointer, broken)
    loop = build_loop(config, rank=rank, world_size=world_size, device=device, hooks=hooks)
    _restore(loop, store)
    history = loop.run()
    checkpointer.close()
    return history


def _restore(loop: TrainLoop, store: CheckpointStore) -> None:
    """Go on from the newest whole checkpoint, the same on every rank; begin where there is none."""
    place = loop.ranks.first(patiently(store.newest) if loop.ranks.rank == 0 else None)
    if place is None:
        return
    with tempfile.TemporaryDirectory(prefix="sparse-detr-") as folder:
        patiently(store.folder.child(str(place)).download_to, Path(folder))
        loop.restore(Path(folder))
    logger.warning("rank %d continues from %s", loop.ranks.rank, store.folder.child(str(place)).uri)
