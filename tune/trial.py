"""One trial of a sweep: a short training with its own parameters, folder and MLflow run.

A trial of one worker runs the training loop right here, in Tune's process for the trial. One of several workers
starts a Ray Train job of its own, which takes longer to begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray.tune
import torch

from pipelines.cluster.access import DriverAccess
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import field_values, override
from pipelines.tracking.tracker import Tracker
from pipelines.tracking.training_run import child_of, closing
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.hooks import NoHooks, Trained
from pipelines.train.engine.progress import StepProgress
from pipelines.train.preflight import record_weights
from pipelines.train.run import train
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.ops.self_check import self_test
from sparse_detr.weights.model_folder import save_model
from tune.search_space import as_overrides


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialTask:
    """Settings that are the same for every trial of a sweep."""

    run: dict[str, Any] = field(repr=False)
    """The run config that the parameters change, as a dict. It and `parent` may hold a tracking URI with a password,
    so no text shows them."""
    parent: tuple[str, str] | None = field(repr=False)
    """Tracking URI and id of the sweep's MLflow run; None records nothing."""
    access: DriverAccess
    """Works by arriving: see there."""


def trial_config(task: TrialTask, params: Mapping[str, float], trial_id: str) -> RunConfig:
    """The run of one trial: its parameters, and a folder of its own below the sweep's."""
    run = override(from_dict(RunConfig, task.run), as_overrides(params))
    words = ", ".join(f"{name} {value:g}" for name, value in params.items())
    # A trial registers nothing: its model is one of many, and the alias is not for the last of them.
    return replace(run, name=f"trial {words}", output=f"{run.output}/trials/{trial_id}", registered_model=None)


class TuneHooks(NoHooks):
    """Tells Tune and MLflow how every epoch of a trial went."""

    def __init__(self, tracker: Tracker, model: str) -> None:
        self._tracker = tracker
        self._model = model

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        """Log and report; after the last epoch the model is saved before."""
        metrics = dict(progress.metrics)
        self._tracker.metrics(metrics, progress.epoch)
        if progress.epoch == progress.epochs:
            save_model(self._model, loop.eval_model)
        ray.tune.report(metrics | {"model": self._model})


def run_trial(settings: Mapping[str, Any], task: TrialTask) -> None:
    """Run one trial; Tune calls this for each, in a process of its own; `settings["params"]` are the trial's."""
    params: Mapping[str, float] = settings["params"]
    trial_id = ray.tune.get_context().get_trial_id()
    config = trial_config(task, params, trial_id)
    if config.training.workers > 1:
        _run_with_workers(config, task, trial_id)
        return
    torch.set_num_threads(config.training.cpus_per_worker)
    device = "cuda" if config.training.use_gpu else "cpu"
    self_test(device)
    with closing(child_of(task.parent, config.name, trial_id)) as tracker:
        tracker.params(field_values(to_dict(config)))
        hooks = TuneHooks(tracker, f"{config.output}/model")
        build_loop(
            config, device=device, hooks=hooks, on_weights=lambda weights: record_weights(weights, tracker)
        ).run()


def _run_with_workers(config: RunConfig, task: TrialTask, trial_id: str) -> None:
    parent_run_id = task.parent[1] if task.parent else None
    result = train(config, parent_run_id=parent_run_id, tags={"trial_id": trial_id})
    for metrics in result.history:
        ray.tune.report({**metrics, "model": result.checkpoint})
