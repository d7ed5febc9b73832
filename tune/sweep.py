"""A sweep: several short trainings with Ray Tune, compared by validation AP."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import ray
import ray.tune
import ray.tune.execution.class_cache
import ray.tune.search.optuna

from pipelines.cluster.access import DriverAccess
from pipelines.cluster.resources import fitting_trials, trial_resources
from pipelines.cluster.session import Connect, ray_session
from pipelines.recipes.config import RunConfig
from pipelines.recipes.paths import inputs
from pipelines.tracking.training_run import address, open_tracker
from pipelines.train.preflight import OnStart, preflight
from sparse_detr.config_dict import to_dict
from sparse_detr.errors import SparseDetrError
from sparse_detr.storage.location import Location
from sparse_detr.storage.output import Claim, claim_folder, require_apart
from tune.config import SweepConfig
from tune.progress import OnSweepProgress, SweepCallback
from tune.report import SweepResult, collect, write_report
from tune.search_space import Params, SearchSpace
from tune.trial import TrialTask, run_trial

METRIC = "ap"
RESULTS = ("sweep.json", "trials", "tune")
"""Everything that a sweep leaves; `sweep.json` says that it is complete."""
MARKS = ("sweep.json", "tune/tuner.pkl")
"""Files of a complete sweep, and of Tune before its first trial: other programs have folders of these names too."""

LaunchTrials = Callable[[SweepConfig, TrialTask, Location, int, OnSweepProgress | None], SweepResult]
"""Runs all trials, at most so many at once, as `fit_trials` does with Ray Tune."""


def fit_trials(
    config: SweepConfig, task: TrialTask, output: Location, concurrent: int, on_progress: OnSweepProgress | None
) -> SweepResult:
    """Run the trials with Ray Tune, which keeps its state in `output/tune`."""
    _keep_secrets_out_of_ray()
    return collect(_tuner(config, task, output, concurrent, on_progress).fit())


def sweep(
    config: SweepConfig,
    *,
    on_start: OnStart | None = None,
    on_progress: OnSweepProgress | None = None,
    connect: Connect = ray_session,
    launch: LaunchTrials = fit_trials,
    parent_run_id: str | None = None,
) -> SweepResult:
    """Run all trials on the Ray that this process is connected to, or that `connect` opens once all else is checked.

    A trial that breaks is listed with its error.

    `on_start` is called before the first trial, with what was found in the data.

    Every trial writes to `run.output/trials/<id>`; `run.output/sweep.json` holds the comparison.

    Raises:
        ConfigError: a trial alone is too large for the cluster, or the data or the config is wrong.
        OutputExistsError: `run.output` holds another sweep and `run.existing` is `refuse`.
        SparseDetrError: every trial broke.
    """
    # Ray would take Ctrl-C for itself and go on to the end of the sweep's bookkeeping.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    checked = preflight(config.run)
    # Every trial starts in its own way, so the sweep records none.
    run, output, start = checked.config, checked.output, replace(checked.start, weights=None)
    # Refused before Ray starts; deleted once the cluster has room.
    claim = _claim(output, run)
    with ExitStack() as stack:
        room = fitting_trials(run, stack.enter_context(connect()).resources)
        claim.clear()
        if on_start is not None:
            on_start(start)
        named = replace(run, name=f"sweep {run.name}")
        tracker = stack.enter_context(open_tracker(named, parent_run_id=parent_run_id))
        start.record(tracker)
        # Workers of a cluster lack this process's MLFLOW_TRACKING_URI.
        own = replace(run, existing="overwrite", tracking_uri=tracker.uri)
        each, access = to_dict(own), DriverAccess(os.environ)
        task = TrialTask(run=each, parent=address(tracker), access=access)
        result = launch(config, task, output, min(room, config.concurrent), on_progress)
        write_report(result, output, tracker)
    if result.best is None:
        raise SparseDetrError(f"sweep: all {len(result.trials)} trials broke; the first: {result.trials[0].error}")
    return result


def _keep_secrets_out_of_ray() -> None:
    """Take the AWS variables out of those that Tune copies into the runtime environment of every trial.

    Ray shows that in the dashboard and writes it to its logs, and has no setting for it; `DriverAccess` brings them.
    """
    copied = ray.tune.execution.class_cache.ENV_VARS_TO_PROPAGATE
    copied.difference_update({name for name in copied if name.startswith("AWS_")})


def _claim(output: Location, run: RunConfig) -> Claim:
    claim = claim_folder(output, run.existing, RESULTS, marks=MARKS, field="run.output", holds=lambda: "another sweep")
    if run.existing == "overwrite":
        read = {f"run.{name}": uri for name, uri in inputs(run).items()}
        require_apart(output, claim.found, read, field="run.output")
    return claim


def _tuner(
    config: SweepConfig, task: TrialTask, output: Location, concurrent: int, on_progress: OnSweepProgress | None
) -> ray.tune.Tuner:
    trainable = ray.tune.with_resources(ray.tune.with_parameters(run_trial, task=task), trial_resources(config.run))
    optuna = config.method == "optuna"
    search = ray.tune.search.optuna.OptunaSearch(seed=config.run.training.seed) if optuna else None
    return ray.tune.Tuner(
        trainable,
        param_space={"params": _choices(config.space) if optuna else ray.tune.grid_search(_grid(config))},
        tune_config=ray.tune.TuneConfig(
            metric=METRIC, mode="max", num_samples=config.trials if optuna else 1, max_concurrent_trials=concurrent,
            search_alg=search,
        ),
        run_config=ray.tune.RunConfig(
            name="tune", storage_path=output.path, storage_filesystem=output.filesystem, verbose=0,
            callbacks=[SweepCallback(config.trials, config.run.training.epochs, on_progress)],
        ),
    )  # fmt: skip


def _grid(config: SweepConfig) -> list[Params]:
    return list(config.space.grid(config.trials))


def _choices(space: SearchSpace) -> dict[str, Any]:
    return {
        "keep_ratio": ray.tune.choice(list(space.keep_ratio)),
        "encoder_auxiliary_weight": ray.tune.choice(list(space.encoder_auxiliary_weight)),
    }
