"""Starts the workers of a training with Ray Train and waits for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import ray.train.torch

from pipelines.cluster.access import DriverAccess
from pipelines.cluster.user_errors import unpack
from pipelines.recipes.config import RunConfig
from pipelines.tracking.tracker import Tracker
from pipelines.tracking.training_run import address
from pipelines.train.engine.progress import OnProgress, ProgressBoard
from pipelines.train.output import CHECKPOINTS, best_checkpoint, checkpoints_of
from pipelines.train.worker import WorkerTask, train_worker
from sparse_detr.config_dict import to_dict
from sparse_detr.storage.location import Location

POLL_SECONDS = 0.3
"""Between two looks at the progress board: a bar that moves three times a second."""
BOARD_SECONDS = 5.0
"""Longest wait for the board's answer: as much as Ctrl-C may take longer when the board hangs."""


class Trainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer that leaves SIGINT to the command.

    Ray's handler would stay for good, and end a run that Ctrl-C stopped as if it were complete; Ray has no setting
    for it but to run in another thread, which its shutdown does not wait for.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def fit(
    config: RunConfig, output: Location, tracker: Tracker, on_progress: OnProgress | None
) -> tuple[list[dict[str, float]], str]:
    """Run the workers to the end; the history, and the folder name of the best checkpoint."""
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    access = DriverAccess(os.environ)
    # Version 0.1 let Ray Train keep its checkpoints, which would refuse to start when one of its list is gone.
    output.child(CHECKPOINTS, "checkpoint_manager_snapshot.json").delete_file()
    task = WorkerTask(config=to_dict(config), board=board, run=address(tracker), access=access)
    trainer = Trainer(
        train_worker,  # type: ignore[arg-type]  # Ray forgets that a worker may return something.
        train_loop_config={"task": task},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if config.training.use_gpu else "gloo"),
        scaling_config=_scaling(config),
        run_config=_ray_run(config, output),
    )
    try:
        with watched(board, on_progress):
            result: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        _raise_user_error(board, error)
        raise
    _raise_user_error(board, None)
    history = list(result.return_value or [])
    return history, best_checkpoint(checkpoints_of(output, config), history)


def _raise_user_error(board: Any, cause: BaseException | None) -> None:
    """Raise in the driver what a worker noted as a user error."""
    packed = ray.get(board.user_error.remote())
    if packed is not None:
        raise unpack(packed) from cause


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
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # V2 has it.
    )


@contextmanager
def watched(board: Any, on_progress: OnProgress | None) -> Iterator[None]:
    """Show what is on the board, from another thread; it has ended when this returns or raises.

    It must have: Ray's shutdown frees what a call of another thread still uses, and the process dies by SIGSEGV.
    """
    if on_progress is None:
        yield
        return
    over = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="progress") as pool:
        shown = pool.submit(_show, board, on_progress, over)
        try:
            yield
        finally:
            over.set()
    shown.result()


def _show(board: Any, on_progress: OnProgress, over: threading.Event) -> None:
    seen, last = None, False
    while not last:
        # One more look once it is over: the end of the training shows too.
        last = over.wait(POLL_SECONDS)
        try:
            progress = ray.get(board.latest.remote(), timeout=BOARD_SECONDS)
        except ray.exceptions.RayError:
            # A board that is late or gone is no reason to end a training, which goes on without it.
            continue
        if progress is not None and progress != seen:
            seen = progress
            on_progress(progress)
