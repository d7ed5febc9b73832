from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cluster.access import DriverAccess
from pipelines.cluster.resources import fitting_trials, trial_resources
from pipelines.cluster.session import RaySession
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from sparse_detr.config_dict import to_dict
from sparse_detr.errors import ConfigError, OutputExistsError
from sparse_detr.storage.location import Location, locate
from tune.config import SweepConfig
from tune.progress import SweepProgress
from tune.search_space import SearchSpace
from tune.sweep import sweep
from tune.trial import TrialTask, trial_config

GPU_RUN = {"training.use_gpu": True, "training.cpus_per_worker": 4}


def test_trials_fill_the_cluster_but_never_more() -> None:
    one, two = RunConfig(), override(RunConfig(), {"training.workers": 2})

    assert fitting_trials(one, {"CPU": 4.0}) == 4
    # A trial with workers of its own also holds a hundredth of a CPU: a second one would wait for ever.
    assert fitting_trials(two, {"CPU": 4.0}) == 1
    assert fitting_trials(two, {"CPU": 4.1}) == 2
    assert fitting_trials(override(one, GPU_RUN), {"CPU": 64.0, "GPU": 3.0}) == 3
    assert trial_resources(one) == {"CPU": 1.0}
    assert trial_resources(two) == {"CPU": 0.01}
    assert trial_resources(override(one, GPU_RUN)) == {"CPU": 4.0, "GPU": 1.0}


def test_a_trial_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"one trial takes 2\.01 CPUs, the cluster has 2"):
        fitting_trials(override(RunConfig(), {"training.workers": 2}), {"CPU": 2.0})
    with pytest.raises(ConfigError, match="one trial takes 1 GPUs, the cluster has 0"):
        fitting_trials(override(RunConfig(), GPU_RUN), {"CPU": 64.0})


def test_sweeps_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="method: 'random'"):
        SweepConfig(run=RunConfig(), method="random")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="trials: 99; the grid has"):
        SweepConfig(run=RunConfig(), trials=99)
    assert SweepConfig(run=RunConfig(), trials=99, method="optuna").trials == 99


def test_a_trial_has_its_own_folder_and_registers_no_model() -> None:
    run = override(RunConfig(), {"registered_model": "cells", "training.workers": 2})
    task = TrialTask(run=to_dict(run), parent=None, access=DriverAccess({}))
    found = trial_config(task, {"keep_ratio": 0.3}, "7")
    assert (found.output, found.registered_model) == (f"{run.output}/trials/7", None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_compares_trials_and_lists_the_broken_one(
    quick_run: RunConfig, store: Location, mlflow_uri: str, ray_cluster: RaySession, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    from pipelines.train.engine.build import build_loop
    from sparse_detr.detector import SparseDetr
    from sparse_detr.weights.model_folder import save_model

    # A dense model to start from, of which the sparse trials take all but the scoring network.
    loop = build_loop(override(quick_run, {"model.keep_ratio": 1.0, "training.epochs": 1}))
    save_model(tmp_path / "start", loop.eval_model)
    changes = {
        "output": store.uri,
        "tracking_uri": mlflow_uri,
        "training.epochs": 1,
        "training.init_model": str(tmp_path / "start"),
    }
    space = SearchSpace(keep_ratio=(0.2, 0.5), encoder_auxiliary_weight=(1.0, 1e38))
    config = SweepConfig(run=override(quick_run, changes), space=space, trials=2)
    seen: list[SweepProgress] = []
    result = sweep(config, on_progress=seen.append)

    # A weight of 1e38 makes the loss infinite: that trial breaks, the other does not.
    good, broken = result.trials
    assert result.best == good
    assert good.params == {"keep_ratio": 0.2, "encoder_auxiliary_weight": 1.0}
    assert {"ap", "ap50", "loss"} <= good.metrics.keys()
    assert good.model is not None
    assert SparseDetr.from_pretrained(good.model).config.keep_ratio == 0.2
    assert broken.params["encoder_auxiliary_weight"] == 1e38
    assert broken.error is not None
    assert "step 0" in broken.error
    assert broken.model is None
    assert (seen[-1].finished, seen[-1].trials) == (2, 2)

    record = json.loads(store.child("sweep.json").read_bytes())
    assert record["best"] == good.id
    assert [trial["id"] for trial in record["trials"]] == [good.id, broken.id]
    client = MlflowClient(tracking_uri=mlflow_uri)
    experiment = client.get_experiment_by_name(config.run.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if run.info.run_name == "sweep tiny"]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert sorted(run.info.status for run in children) == ["FAILED", "FINISHED"]
    assert all("(scoring_network" in run.data.tags["sparse_detr.starting_weights"] for run in children)

    with pytest.raises(OutputExistsError, match=r"sweep\.json"):
        sweep(config)
    with pytest.raises(ConfigError, match="'resume' continues a training"):
        sweep(replace(config, run=override(config.run, {"existing": "resume"})))
    assert locate(good.model).exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_with_workers_of_their_own(quick_run: RunConfig, ray_cluster: RaySession) -> None:
    run = override(quick_run, {"training.workers": 2, "training.epochs": 1})
    space = SearchSpace(keep_ratio=(0.3, 0.5), encoder_auxiliary_weight=(1.0,))
    result = sweep(SweepConfig(run=run, space=space, trials=2, method="optuna", concurrent=4))

    assert [trial.error for trial in result.trials] == [None, None]
    assert all(trial.params["keep_ratio"] in space.keep_ratio for trial in result.trials)
    assert all(
        trial.model is not None and locate(trial.model).child("manifest.json").exists() for trial in result.trials
    )
