"""Nodes of a cluster that die under a prediction: it goes on by itself, and nothing of its rows shows it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparse_detr.detector import SparseDetr
from sparse_detr.storage.location import Location
from sparse_detr.weights.model_folder import save_model
from tests.predict_job import Job, arguments, played, rows_of
from tests.ray_nodes import RayNodes, children, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

IMAGES = 64


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head and two more nodes, of one CPU each; a node that is silent is noticed within seconds."""
    pace = {"RAY_health_check_period_ms": "1000", "PLAY_PAUSE": "0.2"}
    with ray_nodes([1, 1, 1], played(**pace)) as cluster:
        yield cluster


def _wait_until(reached: Callable[[], object], job: Job, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, job.log.read_text()
        assert job.process is not None
        assert job.process.poll() is None, job.log.read_text()
        time.sleep(0.02)


def _earlier_job(nodes: RayNodes, node: int) -> None:
    """A job of Ray Data whose driver was on that node, where it leaves the helpers that Ray Data keeps for all jobs."""
    code = (
        "import ray, sys, pyarrow; ray.init(_temp_dir=sys.argv[1], log_to_driver=False)\n"
        "class Same:\n"
        "    def __call__(self, batch): return batch\n"
        "data = ray.data.from_arrow([pyarrow.table({'a': [1]})])\n"
        "data.map_batches(Same, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0).materialize()"
    )
    command = [sys.executable, "-c", code, nodes.folders[node]]
    subprocess.run(command, env=nodes.environment, check=True, capture_output=True, timeout=120)
    assert set(nodes.workers("ray::ActorLocationTracker").values()) == {nodes.raylets[node]}


def test_a_node_that_dies_costs_nothing_but_time(
    nodes: RayNodes, store: Location, model: SparseDetr, make_picture: Callable[[int, int, int], bytes], tmp_path: Path
) -> None:
    """The node that dies has a worker, and is needed: the others have no room for a third one. It also has helpers of
    Ray Data's, left by an earlier job; of ours, the one that dies is on the driver's node.
    """
    for number in range(IMAGES):
        store.child("images", f"{number:04d}.jpg").write_bytes(make_picture(number, 96, 128))
    save_model(store.child("model").uri, model)

    def job(output: str, workers: int) -> Job:
        uris = (store.child(name).uri for name in ("model", "images", output))
        return Job(arguments(*uris, workers=workers), tmp_path / f"{output}.log", nodes.environment).start()

    _earlier_job(nodes, 1)
    undisturbed = job("undisturbed", workers=1)
    assert undisturbed.wait() == 0, undisturbed.log.read_text()

    disturbed = job("out", workers=3)
    parts = store.child("out", "detections")
    _wait_until(lambda: parts.exists() and len(parts.list()) >= 2, disturbed)
    [(counter, home)] = nodes.workers("ray::Attempts").items()
    assert home == nodes.raylets[0]
    os.kill(counter, signal.SIGKILL)
    _wait_until(lambda: nodes.raylets[1] in nodes.workers("MapWorker(MapBatches(Worker)).submit").values(), disturbed)
    for pid in (nodes.raylets[1], *children(nodes.raylets[1])):
        os.kill(pid, signal.SIGKILL)
    assert len(parts.list()) < IMAGES // 4 - 2
    assert disturbed.wait() == 0, disturbed.log.read_text()
    rows, expected = rows_of(store.child("out")), rows_of(store.child("undisturbed"))
    assert len({row["key"] for row in rows}) == len(rows) == IMAGES
    assert [row["error"] for row in rows] == [None] * IMAGES
    assert rows == expected
    success = json.loads(store.child("out", "_SUCCESS.json").read_bytes())
    assert [part["name"] for part in success["parts"]] == parts.list()
