"""Starts the workers of a training with Ray Train and waits for them."""

from __future__ import annotations

import os
import signal
import tempfile
import time
import traceback
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2.api.config import FailureConfig, LoggingConfig, ScalingConfig
from ray.train.v2.api.config import RunConfig as RayRunConfig

from pipelines.cli.interruption import Interrupted, Stop, patient_stop
from pipelines.cluster.access import DriverAccess
from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.tracking.tracker import Tracker
from pipelines.tracking.training_run import address
from pipelines.train.engine.news import NewsBox
from pipelines.train.engine.progress import Listeners
from pipelines.train.output import CHECKPOINTS, best_checkpoint, checkpoints_of
from pipelines.train.policies import RestartPolicy, cause, final_error, scaling_policy
from pipelines.train.record import Fitted, RunRecord
from pipelines.train.supervision import Supervision
from pipelines.train.watch import Watch
from pipelines.train.worker import WorkerResult, WorkerTask, train_worker
from sparse_detr.config_dict import to_dict
from sparse_detr.errors import IncompleteError
from sparse_detr.storage.location import Location

_NODE_ID = "ray.io/node-id"
"""Label that every node has."""
RESIZE_SECONDS = 30.0
"""Between two looks for room for more workers."""
PENDING_CALLS = 1000
"""A box that does not answer takes no more than so many facts."""


class Trainer(ray.train.torch.TorchTrainer):
    """A TorchTrainer with our policies, which leaves SIGINT to the command.

    Ray's handler would stay for good, and end a run that Ctrl-C stopped as if it were complete; Ray has no setting
    for it but to run in another thread, which its shutdown does not wait for.
    """

    scaling_config: ScalingConfig

    def __init__(self, box: Any, **settings: Any) -> None:
        super().__init__(train_worker, **settings)  # type: ignore[arg-type]  # Ray forgets that it may return something.
        self._box = box

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        failures = RestartPolicy(self.run_config.failure_config, self._box)
        ours = {"scaling_policy": scaling_policy(self.scaling_config), "failure_policy": failures}
        return super()._initialize_and_run_controller(**{**settings, **ours})  # type: ignore[misc]  # V2 has it.

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def fit(config: RunConfig, output: Location, tracker: Tracker, listeners: Listeners) -> Fitted:
    """Run the workers to the end.

    Raises:
        SparseDetrError: a user error that a worker found.
        IncompleteError: workers died, or a store was away, more often than is allowed.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint if there was time for one.
    """
    # On this node: it lives as long as this process, whatever becomes of the others.
    here = {_NODE_ID: ray.get_runtime_context().get_node_id()}
    pinned = ray.remote(num_cpus=0, max_restarts=-1, label_selector=here)(NewsBox)
    box = pinned.options(max_pending_calls=PENDING_CALLS).remote()
    # Version 0.1 let Ray Train keep its checkpoints, which would refuse to start when one of its list is gone.
    output.child(CHECKPOINTS, "checkpoint_manager_snapshot.json").delete_file()
    trainer = _trainer(config, output, tracker, box)
    record = RunRecord.continued(output, time.time()) if config.existing == "resume" else RunRecord()
    with patient_stop(config.training.stop_seconds) as stop:
        watch = Watch(box, config.training, output, record, listeners, stop)
        result = _watched(trainer, watch, stop)
    if result.stopped:
        raise Interrupted(f"Stopped after step {record.step}, with a checkpoint.", stop.number or signal.SIGINT)
    record.complete = True
    watch.save()
    best = best_checkpoint(checkpoints_of(output, config), result.history)
    return Fitted(history=result.history, best=best, record=record.summary(), unwritten=result.unwritten)


def _watched(trainer: Trainer, watch: Watch, stop: Stop) -> WorkerResult:
    try:
        with watch.watching():
            found: WorkerResult = trainer.fit().return_value  # type: ignore[attr-defined]  # V2 has it.
            return found
    except Interrupted as error:
        text = f"Stopped after step {watch.record.step}, at once: the run goes on from its last checkpoint."
        raise Interrupted(text, error.number) from None
    except ray.train.TrainingFailedError as error:
        if (user_error := final_error(error)) is not None:
            raise user_error from error
        raise IncompleteError(
            f"the training ended after step {watch.record.step}: {cause(error)}; that is more often than training."
            f"max_failures allows (all of it is in {_log(error)}); --existing resume goes on from the last checkpoint"
        ) from error


def _log(error: BaseException) -> str:
    """A file with the whole error, which may have a page for each worker."""
    with tempfile.NamedTemporaryFile("w", prefix="sparse-detr-train-", suffix=".log", delete=False) as log:
        log.writelines(traceback.format_exception(error))
    return log.name


def _trainer(config: RunConfig, output: Location, tracker: Tracker, box: Any) -> Trainer:
    task = WorkerTask(config=to_dict(config), box=box, run=address(tracker), access=DriverAccess(os.environ))
    return Trainer(
        box,
        train_loop_config={"task": task},
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if config.training.use_gpu else "gloo"),
        scaling_config=_scaling(config.training),
        run_config=_ray_run(config, output, box),
    )


def _scaling(training: TrainingConfig) -> ScalingConfig:
    resources = {"CPU": float(training.cpus_per_worker)} | ({"GPU": 1.0} if training.use_gpu else {})
    fewest, most = training.fewest_workers, training.workers
    return ScalingConfig(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=training.use_gpu,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def _ray_run(config: RunConfig, output: Location, box: Any) -> RayRunConfig:
    return RayRunConfig(
        name=CHECKPOINTS,
        storage_path=output.path,
        storage_filesystem=output.filesystem,
        failure_config=FailureConfig(max_failures=config.training.max_failures),
        callbacks=[Supervision(box, config.training.hang_minutes)],  # type: ignore[list-item]  # allowed, says its source
        logging_config=LoggingConfig(log_level="WARNING"),
    )
