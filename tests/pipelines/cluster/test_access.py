"""The driver's access to store and MLflow reaches the processes of a cluster, and no text or log of Ray shows it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines.cluster.access import DriverAccess
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.services.s3_server import LocalS3
from pipelines.train.worker import WorkerTask
from sparse_detr.config_dict import to_dict
from sparse_detr.storage.location import Location
from tune.trial import TrialTask

SECRETS = {"AWS_SECRET_ACCESS_KEY": "hush-hush", "MLFLOW_TRACKING_PASSWORD": "hush-too"}


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "RAY_"))}


def test_access_arrives_in_a_process_that_had_none() -> None:
    sent = pickle.dumps(DriverAccess({**SECRETS, "AWS_PROFILE": "mine", "HOME": "/nowhere"}))
    script = """
        import json, os, pickle, sys
        pickle.loads(sys.stdin.buffer.read())
        print(json.dumps(dict(os.environ)))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, input=sent, env=_clean(), capture_output=True, check=True, timeout=60)
    found = json.loads(done.stdout)

    assert {name: found.get(name) for name in SECRETS} == SECRETS
    assert "AWS_PROFILE" not in found, "it names a file of the driver's machine"
    assert found["HOME"] == os.environ["HOME"]


def test_no_text_shows_a_secret() -> None:
    config = override(RunConfig(), {"tracking_uri": "postgresql://me:hush@host/db"})
    access, run = DriverAccess(SECRETS), ("postgresql://me:hush@host/db", "1")
    train = WorkerTask(config=to_dict(config), box=None, run=run, access=access)
    trial = TrialTask(run=to_dict(config), parent=run, access=access)

    for thing in (access, train, trial, {"task": train}):
        assert "hush" not in f"{thing} {thing!r}"
    assert "AWS_SECRET_ACCESS_KEY" in repr(train)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_and_trials_write_to_a_store_that_the_cluster_cannot_open_itself(
    quick_run: RunConfig, s3: LocalS3, store: Location, tmp_path: Path
) -> None:
    script = """
        import json, os, sys
        from pipelines.recipes.config import RunConfig
        from pipelines.recipes.override import override
        from pipelines.cluster.session import ray_session
        from sparse_detr.config_dict import from_dict
        config, access = json.loads(sys.stdin.read())
        with ray_session(logical_cpus=4) as session:
            os.environ.update(access)
            from pipelines.train.run import train
            from tune.search_space import SearchSpace
            from tune.config import SweepConfig
            from tune.sweep import sweep
            run = from_dict(RunConfig, config)
            model = train(override(run, {"output": run.output + "/train"})).checkpoint
            space = SearchSpace(keep_ratio=(0.3,), encoder_auxiliary_weight=(1.0,))
            found = sweep(SweepConfig(run=override(run, {"output": run.output + "/sweep"}), space=space, trials=1))
            print(json.dumps([session.logs, model, found.best.model]))
    """
    config = override(quick_run, {"output": store.uri, "training.epochs": 1})
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=json.dumps([to_dict(config), s3.environment()]),
        env=_clean() | {"OMP_NUM_THREADS": "1", "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    logs, *models = json.loads(done.stdout.splitlines()[-1])
    assert [model.startswith(store.uri) for model in models] == [True, True]
    assert store.child("train/model/manifest.json").exists()
    assert store.child("train/checkpoints/epoch_0001").is_dir()
    written = [store.child(name).read_bytes() for name in store.list(recursive=True)]
    assert not any(s3.secret_key.encode() in content for content in written)
    files = [path for path in Path(logs).parent.rglob("*") if path.is_file()]
    assert any("runtime_env_agent" in path.name for path in files)
    assert [path for path in files if s3.secret_key.encode() in path.read_bytes()] == []
