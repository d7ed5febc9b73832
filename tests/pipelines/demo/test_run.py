"""The whole demo scaled down, and that nothing outlives it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipelines.demo.collection import broken_images
from pipelines.demo.config import DemoConfig
from pipelines.demo.run import require_reachable_store, run_demo, tracking_uri
from sparse_detr.data.shapes import ShapesConfig
from sparse_detr.errors import ConfigError
from tune.demo import run_sweep

SMALL = ("--images", "32", "--validation", "8", "--collection", "10", "--epochs", "1", "--trials", "2",
         "--trial-epochs", "2", "--trial-images", "16", "--ratios", "0.1", "1.0")  # fmt: skip
VARIABLE = "SPARSE_DETR_TEST_MARK"


@dataclass(frozen=True)
class Demo:
    """A demo in a process group of its own; all that it starts carries a mark in its environment."""

    process: subprocess.Popen[str]
    mark: str
    folder: Path
    log: Path

    def survivors(self) -> list[str]:
        """Command lines of the marked processes that live."""
        found = []
        wanted = f"{VARIABLE}={self.mark}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def wait_until(self, what: str, seconds: float) -> None:
        """Until a marked process has this in its command line, or the log in its text."""
        deadline = time.monotonic() + seconds
        while what not in self.log.read_text() and not any(what in line for line in self.survivors()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"no {what}:\n{self.log.read_text()}"
            time.sleep(0.2)

    def assert_gone(self, seconds: float) -> None:
        """All marked processes end within this time."""
        deadline = time.monotonic() + seconds
        while left := self.survivors():
            assert time.monotonic() < deadline, "still there:\n" + "\n".join(left)
            time.sleep(0.2)


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Demo]:
    arguments = getattr(request, "param", SMALL)
    mark, log = secrets.token_hex(8), tmp_path / "log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    command = [sys.executable, "-m", "pipelines.cli", "demo", "--output", str(tmp_path / "demo"), *arguments]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            env=clean | {VARIABLE: mark, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        yield Demo(process=process, mark=mark, folder=tmp_path / "demo", log=log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(120)


def test_a_cluster_without_a_store_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS: head:6379, but store is not set"):
        run_demo(DemoConfig(output=tmp_path / "demo"), Console(quiet=True), run_sweep)
    assert not (tmp_path / "demo").exists()
    require_reachable_store(DemoConfig(store="s3://bucket/prefix"))


def test_the_tracking_store_of_the_environment_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(DemoConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(DemoConfig(), tmp_path) == "http://server:5000"
    assert tracking_uri(DemoConfig(tracking_uri="http://mine:5000"), tmp_path) == "http://mine:5000"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_scaled_down(demo: Demo) -> None:
    assert demo.process.wait(840) == 0, demo.log.read_text()
    demo.assert_gone(30)
    summary = json.loads((demo.folder / "summary.json").read_text())
    assert list(summary["seconds"])[-1] == "total"
    assert sum(list(summary["seconds"].values())[:-1]) <= summary["seconds"]["total"]
    assert 0 <= summary["ap"] <= summary["ap50"] <= 1
    _check_detections(demo, summary)
    _check_runs(demo)
    assert {row["keep_ratio"] for row in summary["ratios"]} >= {0.1, 1.0}
    assert set(summary["best_trial"]["params"]) == {"keep_ratio", "encoder_auxiliary_weight"}
    report = (demo.folder / "report.html").read_text()
    assert report.count("data:image/png") >= 4
    assert "broken-empty.jpg" in report
    assert '"short_side": 128' in (demo.folder / "detections" / "_run.json").read_text()
    assert (demo.folder / "pictures" / "demo.png").stat().st_size > 10_000
    identity = json.loads((demo.folder / "store" / "s3.json").read_text())["identities"][0]["credentials"][0]
    for text in (report, json.dumps(summary), demo.log.read_text()):
        assert "Traceback" not in text
    for file in (demo.log, *_written_in_words(demo.folder)):
        assert identity["secretKey"].encode() not in file.read_bytes(), file


def _written_in_words(folder: Path) -> list[Path]:
    """Every file of the demo but the server's own: its credentials file and the volumes with the stored objects."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "store"]
    files.append(folder / "store" / "weed.log")
    names = {path.name for path in files}
    assert {"report.html", "summary.json", "ray.log", "mlflow.db"} <= names
    return files


def _check_detections(demo: Demo, summary: dict[str, dict[str, int]]) -> None:
    rows = pq.read_table(demo.folder / "detections" / "detections").to_pylist()
    broken = {row["uri"].rpartition("/")[2] for row in rows if row["error"] is not None}
    assert broken == dict(broken_images(ShapesConfig(images=1))).keys()
    assert len(rows) == 10 + len(broken) == summary["inference"]["images"]
    assert summary["inference"]["errors"] == len(broken)


def _check_runs(demo: Demo) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{demo.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sparse-detr-demo")
    assert experiment is not None
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}

    def ancestors(run_id: str) -> list[str]:
        parent = runs[run_id].data.tags.get("mlflow.parentRunId")
        return [runs[run_id].info.run_name or "", *(ancestors(parent) if parent else [])]

    paths = [ancestors(run_id) for run_id in runs]
    assert all(path[-1] == "demo" for path in paths)
    assert ["training", "demo"] in paths
    assert ["inference", "demo"] in paths
    assert sum(path[0].startswith("trial ") for path in paths) == 2
    top = next(run for run in runs.values() if run.info.run_name == "demo")
    files = {item.path for item in client.list_artifacts(top.info.run_id)}
    assert {"model", "pictures", "report.html", "summary.json"} <= files
    training = next(run for run in runs.values() if run.info.run_name == "training")
    assert len(client.get_metric_history(training.info.run_id, "loss")) == 1
    assert training.data.params["model.keep_ratio"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("demo", [(*SMALL, "--epochs", "500")], indirect=True)
def test_ctrl_c_during_training_leaves_nothing_behind(demo: Demo) -> None:
    demo.wait_until("RayTrainWorker", 300)
    time.sleep(3)
    os.killpg(demo.process.pid, signal.SIGINT)  # as a terminal does, to all of the group
    time.sleep(0.5)
    os.killpg(demo.process.pid, signal.SIGINT)  # an impatient user
    assert demo.process.wait(120) == 130, demo.log.read_text()
    demo.assert_gone(30)
    assert "Traceback" not in demo.log.read_text()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{demo.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sparse-detr-demo")
    assert experiment is not None
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"KILLED"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("demo", [(*SMALL, "--epochs", "500")], indirect=True)
def test_the_servers_end_when_the_demo_is_killed(demo: Demo) -> None:
    demo.wait_until("3/7 Training", 300)
    assert any("weed" in line for line in demo.survivors())
    assert any("raylet" in line for line in demo.survivors())
    os.kill(demo.process.pid, signal.SIGKILL)
    demo.process.wait(30)
    demo.assert_gone(90)
