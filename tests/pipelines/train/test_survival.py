"""Trainings that are stopped, killed, hung and starved of disk for real: what is learned does not show it.

All but one run on a cluster that is up, as a local Ray takes ten seconds to start.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.services.s3_server import LocalS3
from sparse_detr.detector import SparseDetr
from sparse_detr.storage.location import Location, locate
from tests.faulty_store import faulty_store
from tests.predict_job import Job, played
from tests.ray_nodes import RayNodes, ray_nodes
from tests.small_disk import small_disk
from tests.small_training import without_times
from tests.train_job import steps_kept, train_job, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EPOCHS, STEPS = 6, 12
SETTINGS: Mapping[str, Any] = {"workers": 2, "epochs": EPOCHS, "checkpoint_steps": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    """Two CPUs; a step takes a third of a second, so that there is time to break it."""
    with ray_nodes([2], played(PLAY_STEP_PAUSE="0.3")) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def undisturbed(cluster: RayNodes, shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = train_job(shapes_folder, str(folder / "out"), folder / "log", cluster.environment, **SETTINGS)
    assert job.wait() == 0, job.log.read_text()
    return folder / "out"


def result(output: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(locate(output).child("result.json").read_bytes())
    return found


def assert_same(output: str | Path, undisturbed: Path) -> None:
    """History and model of a run are those of another to the last bit."""
    assert without_times(result(output)["history"]) == without_times(result(undisturbed)["history"])
    places = (locate(folder).child("model").uri for folder in (output, undisturbed))
    mine, other = (SparseDetr.from_pretrained(uri).state_dict() for uri in places)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def text(job: Job) -> str:
    """All that the user saw, as one line."""
    return " ".join(job.log.read_text().split())


def test_stops_and_kills_of_the_command_cost_nothing_but_time(
    cluster: RayNodes, undisturbed: Path, shapes_folder: Path, mlflow_uri: str, tmp_path: Path
) -> None:
    """Ctrl-C, twice in a moment, SIGTERM and SIGKILL, one after the other, and each time the same command again."""
    from mlflow import MlflowClient

    output = tmp_path / "out"
    client = MlflowClient(tracking_uri=mlflow_uri)

    def start(name: str, **more: Any) -> Job:
        settings = SETTINGS | {"tracking_uri": mlflow_uri, "checkpoint_minutes": 0} | more
        return train_job(shapes_folder, str(output), tmp_path / name, cluster.environment, **settings)

    def status() -> str:
        return str(client.get_run(run_id()).info.status)

    def run_id() -> str:
        return str(json.loads((output / "run.json").read_text())["run_id"])

    # Checkpoints at the end of an epoch alone: what is kept within one is what the stop has written.
    first = start("first", checkpoint_steps=1000)
    wait_until(lambda: steps_kept(str(output)) == STEPS, first)
    time.sleep(2)
    first.process.send_signal(signal.SIGINT)
    assert first.wait(60) == 130, text(first)
    kept = steps_kept(str(output))
    assert kept > STEPS
    assert f"Stopped after step {kept}, with a checkpoint. It goes on with sparse-detr train tiny" in text(first)
    assert "--existing resume" in text(first)
    assert status() == "KILLED"
    recorded = run_id()

    second = start("second", existing="resume")
    wait_until(lambda: steps_kept(str(output)) > kept, second)
    second.process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    began = time.monotonic()
    second.process.send_signal(signal.SIGINT)
    assert second.wait(60) == 130, text(second)
    assert time.monotonic() - began < 30
    assert "at once" in text(second)

    kept = steps_kept(str(output))
    third = start("third", existing="resume")
    wait_until(lambda: steps_kept(str(output)) > kept, third)
    third.process.send_signal(signal.SIGTERM)
    assert third.wait(60) == 143, text(third)
    assert "with a checkpoint" in text(third)

    kept = steps_kept(str(output))
    fourth = start("fourth", existing="resume")
    assert fourth.kill_when(lambda: steps_kept(str(output)) > kept), text(fourth)
    wait_for_no_more(lambda: cluster.workers("RayTrainWorker"))
    assert status() == "RUNNING"

    fifth = start("fifth", existing="resume")
    assert fifth.wait() == 0, text(fifth)
    assert_same(output, undisturbed)
    assert (status(), run_id()) == ("FINISHED", recorded)
    steps = [point.step for point in client.get_metric_history(recorded, "loss")]
    assert sorted(steps) == list(range(1, EPOCHS + 1))
    record = result(output)["record"]
    assert [each["kind"] for each in record["restarts"]] == ["driver"] * 4
    assert record["restarts"][0]["steps_redone"] == 0
    assert all("Traceback" not in text(job) for job in (first, second, third, fourth, fifth))


def wait_for_no_more(found: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while left := found():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_a_killed_command_with_a_ray_of_its_own_leaves_no_process(shapes_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = train_job(shapes_folder, str(output), tmp_path / "log", {}, **SETTINGS)
    assert job.kill_when(lambda: steps_kept(str(output)) > 2), text(job)
    began = time.monotonic()
    wait_for_no_more(job.others)
    assert time.monotonic() - began < 40


def test_a_worker_that_stands_still_is_named_and_replaced(
    cluster: RayNodes, undisturbed: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    """And before that the process that keeps the news for the driver is killed: nobody misses it."""
    output = tmp_path / "out"
    job = train_job(shapes_folder, str(output), tmp_path / "log", cluster.environment, **SETTINGS, hang_minutes=0.75)
    wait_until(lambda: steps_kept(str(output)) >= 3, job)
    [(box, home)] = cluster.workers("ray::NewsBox").items()
    assert home == cluster.raylets[0]
    os.kill(box, signal.SIGKILL)
    wait_until(lambda: steps_kept(str(output)) >= 8, job)
    workers = sorted(cluster.workers("RayTrainWorker"))
    os.kill(workers[-1], signal.SIGSTOP)
    began = time.monotonic()
    wait_until(lambda: f"(process {workers[-1]} on" in text(job), job)
    assert time.monotonic() - began < 60
    assert job.wait() == 0, text(job)
    assert not Path(f"/proc/{workers[-1]}").exists()
    assert_same(output, undisturbed)
    [restart] = result(output)["record"]["restarts"]
    assert restart["kind"] == "hang"
    assert restart["workers"] == 2


def test_a_full_disk_is_said_and_survived(
    cluster: RayNodes, undisturbed: Path, shapes_folder: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "8m") as grow:
        job = train_job(shapes_folder, str(disk / "out"), tmp_path / "log", cluster.environment, **SETTINGS)
        assert job.wait() == 2, text(job)
        assert "the disk is full; make room" in text(job)
        assert "Traceback" not in text(job)
        assert len([line for line in job.log.read_text().splitlines() if "error" in line]) == 1
        grow("2g")
        more = SETTINGS | {"existing": "resume"}
        again = train_job(shapes_folder, str(disk / "out"), tmp_path / "log2", cluster.environment, **more)
        assert again.wait() == 0, text(again)
        assert_same(disk / "out", undisturbed)


def test_a_store_that_is_away_and_then_fails_often_costs_no_step(
    cluster: RayNodes, undisturbed: Path, shapes_folder: Path, s3: LocalS3, store: Location, tmp_path: Path
) -> None:
    output = store.child("out").uri
    with faulty_store(s3.endpoint) as proxy:
        through = {"AWS_ENDPOINT_URL": proxy.endpoint, "AWS_ENDPOINT_URL_S3": proxy.endpoint}
        job = train_job(shapes_folder, output, tmp_path / "log", cluster.environment | through, **SETTINGS)
        wait_until(lambda: steps_kept(output) >= 3, job)
        proxy.away = True
        time.sleep(10)
        proxy.away, proxy.rate, proxy.delay = False, 0.2, 1.0
        kept = steps_kept(output)
        wait_until(lambda: steps_kept(output) > kept + 5, job)
        proxy.rate = 0.0
        assert job.wait() == 0, text(job)
    assert proxy.failed["away"] > 0
    assert len(proxy.failed) > 1
    assert_same(output, undisturbed)
    assert result(output)["record"]["restarts"] == []
