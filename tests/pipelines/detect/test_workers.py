from __future__ import annotations

import os
import pickle

import pytest

from pipelines.cluster.session import RaySession
from pipelines.detect.config import DetectionConfig
from pipelines.detect.pool import plan_pool
from pipelines.detect.predictor import PredictorFactory
from pipelines.detect.workers import Work
from pipelines.predict.parts import ParquetSink, Stamp
from pipelines.predict.stored_manifest import StoredBlocks
from sparse_detr.errors import ConfigError


def _config(**changes: object) -> DetectionConfig:
    return DetectionConfig(model="m", images="i", **changes)  # type: ignore[arg-type]


def _session(cpus: float, gpus: float = 0) -> RaySession:
    return RaySession(address="", dashboard=None, cpus=cpus, gpus=gpus, local=True)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16, 64])
@pytest.mark.parametrize("workers", [None, 1, 2, 3, 7, 64])
@pytest.mark.parametrize("share", [0.5, 1.0, 4.0])
def test_one_cpu_stays_free(cpus: int, workers: int | None, share: float) -> None:
    """Ray Data's own tasks take one; without it the job would wait for ever."""
    pool = plan_pool(_config(workers=workers, cpus_per_worker=share), _session(cpus), blocks=1000)
    assert pool.size == (workers or cpus)
    assert pool.size * pool.cpus <= cpus - 1
    assert pool.cpus <= share


def test_a_local_ray_that_believes_in_more_cpus_gets_a_worker_a_real_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    local = RaySession(address="127.0.0.1:6379", dashboard=None, cpus=4, gpus=0, local=False)
    assert plan_pool(_config(), local, blocks=100).size == 2
    assert plan_pool(_config(workers=3), local, blocks=100).size == 3


def test_no_more_workers_than_blocks() -> None:
    assert plan_pool(_config(), _session(16), blocks=3).size == 3


def test_gpus_are_taken_where_there_are_any() -> None:
    assert plan_pool(_config(), _session(16, gpus=4), blocks=100) == plan_pool(
        _config(device="gpu", workers=4), _session(16, gpus=4), blocks=100
    )
    assert plan_pool(_config(), _session(16, gpus=4), blocks=100).gpus == 1
    assert plan_pool(_config(device="cpu"), _session(16, gpus=4), blocks=100).gpus == 0


@pytest.mark.parametrize(("workers", "gpus"), [(None, 0), (3, 2)])
def test_more_gpu_workers_than_gpus_is_refused(workers: int | None, gpus: int) -> None:
    with pytest.raises(ConfigError, match="workers"):
        plan_pool(_config(device="gpu", workers=workers), _session(16, gpus=gpus), blocks=100)


def test_work_travels_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    factory = PredictorFactory(config=_config(), score_threshold=0.1)
    stamp = Stamp(fingerprint="f", manifest="m")
    sink, source = ParquetSink(output="/o", stamp=stamp), StoredBlocks(output="/o", stamp=stamp)
    work = Work(config=_config(), predictor=factory, root="/r", fingerprint="f", sink=sink, source=source)
    sent = pickle.dumps(work)
    assert b"hidden-secret" not in sent
    assert pickle.loads(sent) == work
