"""A sweep: several short trainings with Ray Tune, compared by validation AP."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import ray
import ray.tune
import ray.tune.search.optuna

from pipelines.cluster.access import DriverAccess
from pipelines.cluster.resources import cluster_resources, fitting_trials, trial_resources
from pipelines.cluster.session import prepare_environment
from pipelines.recipes.paths import absolute
from pipelines.tracking.training_run import address, open_tracker
from pipelines.train.engine.build import with_classes
from pipelines.train.preflight import OnStart, RunStart, check_data
from sparse_detr.config_dict import to_dict
from sparse_detr.errors import SparseDetrError
from sparse_detr.storage.location import Location, check_access, locate
from sparse_detr.storage.output import claim_folder
from tune.config import SweepConfig
from tune.progress import OnSweepProgress, SweepCallback
from tune.report import SweepResult, collect, write_report
from tune.search_space import Params, SearchSpace
from tune.trial import TrialTask, run_trial

METRIC = "ap"
RESULTS = ("sweep.json", "trials", "tune")
"""Everything that a sweep leaves; `sweep.json` says that it is complete."""


def sweep(
    config: SweepConfig,
    *,
    on_start: OnStart | None = None,
    on_progress: OnSweepProgress | None = None,
    parent_run_id: str | None = None,
) -> SweepResult:
    """Run all trials on the Ray that this process is connected to; a trial that breaks is listed with its error.

    `on_start` is called before the first trial, with what was found in the data.

    Every trial writes to `run.output/trials/<id>`; `run.output/sweep.json` holds the comparison.

    Raises:
        ConfigError: a trial alone is too large for the cluster, or the data or the config is wrong.
        OutputExistsError: `run.output` holds another sweep and `run.existing` is `refuse`.
        SparseDetrError: every trial broke.
    """
    prepare_environment()
    # Ray would take Ctrl-C for itself and go on to the end of the sweep's bookkeeping.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    run = absolute(config.run)
    output = locate(run.output)
    check_access(output)
    start = RunStart(data=check_data(run))
    run = with_classes(run, start.data.classes)
    room = fitting_trials(run, cluster_resources())
    claim = claim_folder(output, run.existing, RESULTS, field="run.output", holds=lambda: "another sweep")
    claim.clear()
    if on_start is not None:
        on_start(start)
    with open_tracker(replace(run, name=f"sweep {run.name}"), parent_run_id=parent_run_id) as tracker:
        start.record(tracker)
        each, access = to_dict(replace(run, existing="overwrite")), DriverAccess(os.environ)
        task = TrialTask(run=each, parent=address(tracker), access=access)
        tuner = _tuner(config, task, output, min(room, config.concurrent), on_progress)
        result = collect(tuner.fit())
        write_report(result, output, tracker)
    if result.best is None:
        raise SparseDetrError(f"sweep: all {len(result.trials)} trials broke; the first: {result.trials[0].error}")
    return result


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
