"""Nodes of a cluster that die, come and are drained under a training: it goes on by itself, with the same steps.

The tests share a cluster and follow one another: each leaves it with two nodes of one CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.predict_job import Job, played
from tests.ray_nodes import RayNodes, ray_nodes
from tests.small_training import without_times
from tests.train_job import steps_kept, train_job, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head and another node; a node that is silent is noticed within seconds."""
    with ray_nodes([1, 1], played(RAY_health_check_period_ms="1000", PLAY_STEP_PAUSE="0.3")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(
    nodes: RayNodes, shapes_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, float]]:
    """History of a run that nothing happened to; its first epochs are those of a shorter one."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = _job(nodes, shapes_folder, folder)
    assert job.wait() == 0, job.log.read_text()
    return without_times(_result(folder)["history"])


def _job(nodes: RayNodes, data: Path, folder: Path, **more: Any) -> Job:
    settings: dict[str, Any] = {"workers": 2, "epochs": 12, "checkpoint_steps": 5} | more
    return train_job(data, str(folder / "out"), folder / "log", nodes.environment, **settings)


def _result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "result.json").read_text())
    return found


def _assert_close(history: list[dict[str, float]], undisturbed: list[dict[str, float]]) -> None:
    """Losses are those of the undisturbed run but for the order of sums in float32."""
    losses = [name for name in undisturbed[0] if "loss" in name]
    assert losses
    for mine, other in zip(history, undisturbed, strict=True):
        assert {name: mine[name] for name in losses} == pytest.approx({name: other[name] for name in losses}, rel=1e-5)


def _text(job: Job) -> str:
    return " ".join(job.log.read_text().split())


def test_it_goes_on_with_the_workers_left_and_takes_others_in(
    nodes: RayNodes, undisturbed: list[dict[str, float]], shapes_folder: Path, tmp_path: Path
) -> None:
    job = _job(nodes, shapes_folder, tmp_path, min_workers=1)
    output = str(tmp_path / "out")
    wait_until(lambda: steps_kept(output) >= 15, job)
    nodes.kill(len(nodes.raylets) - 1)
    wait_until(lambda: "with 1 worker" in _text(job), job)
    nodes.add(1)
    wait_until(lambda: "with 2 workers" in _text(job), job)
    assert job.wait() == 0, job.log.read_text()
    found = _result(tmp_path)
    _assert_close(without_times(found["history"]), undisturbed)
    record = found["record"]
    assert [each["workers"] for each in record["workers"]] == [2, 1, 2]
    lost, resized = record["restarts"]
    assert (lost["kind"], resized["kind"]) == ("failure", "resize")
    assert 0 <= lost["steps_redone"] <= 5
    assert lost["from_step"] % 5 == 0 or lost["from_step"] % 12 == 0
    assert (resized["steps_redone"], resized["workers"]) == (0, 2)
    assert record["seconds_lost"] == pytest.approx(lost["seconds_lost"] + resized["seconds_lost"], abs=0.01)
    assert "Traceback" not in job.log.read_text()


def test_a_node_about_to_go_is_left_with_a_checkpoint(
    nodes: RayNodes, undisturbed: list[dict[str, float]], shapes_folder: Path, tmp_path: Path
) -> None:
    """A drain, as a cloud's notice of preemption makes one; workers left alone are enough."""
    job = _job(nodes, shapes_folder, tmp_path, min_workers=1, checkpoint_steps=1000, checkpoint_minutes=0)
    output = str(tmp_path / "out")
    wait_until(lambda: steps_kept(output) >= 12, job)
    node = len(nodes.raylets) - 1
    drain = ["drain-node", "--node-id", nodes.ids[node], "--reason", "DRAIN_NODE_REASON_PREEMPTION",
             "--reason-message", "spot", "--deadline-remaining-seconds", "60",
             "--address", nodes.environment["RAY_ADDRESS"]]  # fmt: skip
    command = [sys.executable, "-m", "ray.scripts.scripts", *drain]
    subprocess.run(command, env=nodes.environment, check=True, capture_output=True, timeout=60)
    wait_until(lambda: "with 1 worker" in _text(job), job)
    assert job.wait() == 0, job.log.read_text()
    nodes.kill(node)
    nodes.add(1)
    found = _result(tmp_path)
    _assert_close(without_times(found["history"]), undisturbed)
    [moved] = found["record"]["restarts"]
    assert (moved["kind"], moved["steps_redone"], moved["workers"]) == ("preemption", 0, 1)
    assert "a node is about to go" in _text(job)


def test_too_few_cpus_are_said_and_waited_for(
    nodes: RayNodes, undisturbed: list[dict[str, float]], shapes_folder: Path, tmp_path: Path
) -> None:
    job = _job(nodes, shapes_folder, tmp_path)
    output = str(tmp_path / "out")
    wait_until(lambda: steps_kept(output) >= 15, job)
    nodes.kill(len(nodes.raylets) - 1)
    wait_until(lambda: "waiting for 2 CPUs, the cluster has 1" in _text(job), job)
    nodes.add(1)
    assert job.wait() == 0, job.log.read_text()
    found = _result(tmp_path)
    assert without_times(found["history"]) == undisturbed
    assert [each["workers"] for each in found["record"]["workers"]] == [2, 2]
