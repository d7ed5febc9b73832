"""Tracker against a real sqlite store and a real server, read back with MLflow's own client."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.recipes.config import RunConfig
from pipelines.services.mlflow_server import local_mlflow
from pipelines.tracking import mlflow_tracker as tracking
from pipelines.tracking.mlflow_tracker import MlflowTracker
from pipelines.tracking.provenance import DataUse, provenance_tags
from pipelines.tracking.system_metrics import system_metrics
from pipelines.tracking.tracker import NullTracker, Tracker
from pipelines.tracking.training_run import continue_run, open_run, open_tracker
from sparse_detr.errors import ConfigError
from sparse_detr.storage.location import Location

ROOT = Path(__file__).resolve().parents[3]
SECRET = "a-secret-nobody-may-see"


@pytest.fixture
def tracker(mlflow_uri: str, request: pytest.FixtureRequest) -> Tracker:
    return open_run(mlflow_uri, "tests", request.node.name)


def read(tracker: Tracker) -> Run:
    assert tracker.run_id is not None
    return MlflowClient(tracker.uri).get_run(tracker.run_id)


def artifact(tracker: Tracker, name: str, tmp_path: Path) -> bytes:
    return Path(MlflowClient(tracker.uri).download_artifacts(tracker.run_id, name, str(tmp_path))).read_bytes()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "pipelines.tracking.mlflow_tracker"]


# ---- what is written ----


def test_a_run_is_opened_and_finished(mlflow_uri: str) -> None:
    tracker = open_run(mlflow_uri, "tests", "name of the run", tags={"a": "b"})
    assert read(tracker).info.status == "RUNNING"
    assert (read(tracker).info.run_name, read(tracker).data.tags["a"]) == ("name of the run", "b")
    assert open_run(mlflow_uri, "tests", "second").run_id != tracker.run_id
    tracker.finish("KILLED")
    assert read(tracker).info.status == "KILLED"
    assert not tracker.failures


def test_artifacts_lie_beside_the_sqlite_file(tracker: Tracker, mlflow_uri: str) -> None:
    folder = Path(mlflow_uri.removeprefix("sqlite:///")).parent
    assert read(tracker).info.artifact_uri.startswith(f"file://{folder}/artifacts/")


def test_params(tracker: Tracker) -> None:
    many = {f"group.field_{i}": i for i in range(250)}
    odd = {"levels[0]": "(1, 2)", "k" * 400: "v", "long": "x" * 9000, "none": None}
    tracker.params(many | odd)
    params = read(tracker).data.params
    assert {key: params[key] for key in many} == {key: str(value) for key, value in many.items()}
    assert (params["levels_0_"], params["k" * 250], params["none"]) == ("(1, 2)", "v", "None")
    assert params["long"] == "x" * 5999 + "…"
    assert not tracker.failures


def test_params_of_a_continued_run(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    tracker.params({"epochs": 5, "lr": 0.1})
    tracker.params({"epochs": 9, "lr": 0.1, "seed": 1})
    assert read(tracker).data.params == {"epochs": "5", "lr": "0.1", "seed": "1"}
    assert [text.partition("parameters ")[2] for text in warnings(caplog)] == ["epochs"]
    assert not tracker.failures


def test_metrics(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda self, *a, **k: (calls.append(k), original(self, *a, **k))[1])
    tracker.metrics({"loss": 2.0, "ap": 0.25, "nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}, 1)
    tracker.metrics({"loss": 1, "class[0] é": 3.0}, 2)
    assert len(calls) == 2
    assert tracker.skipped == 3
    history = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert read(tracker).data.metrics == {"loss": 1.0, "ap": 0.25, "class_0_ é": 3.0}
    tracker.finish()
    assert read(tracker).data.tags["sparse_detr.skipped_metrics"] == "3"


def test_names_that_mlflow_refuses_or_that_look_alike_hold_up_nothing(tracker: Tracker) -> None:
    """Class names are the user's: each gets a curve, whatever is in it."""
    names = ["ap/cell/", "ap/a//b", "ap/..", "ap/.", "ap/猫", "ap/狗", "ap/x[", "ap/x]"]
    names += ["ap/" + "y" * length for length in (300, 301)]
    tracker.metrics({"loss": 1.0} | {name: float(place) for place, name in enumerate(names)}, 1)
    tracker.metrics({"loss": 0.5}, 2)
    assert tracker.failures == {}
    written = read(tracker).data.metrics
    assert written["loss"] == 0.5
    assert sorted(value for key, value in written.items() if key != "loss") == [float(i) for i in range(len(names))]
    assert written["ap/猫"] == 4.0


def test_a_point_that_mlflow_refuses_is_left_out_alone(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tracking.metric_buffer.as_keys", lambda names: {name: name for name in names})
    tracker.metrics({"loss": 1.0, "bad[name]": 2.0, "ap": 0.5}, 1)
    assert read(tracker).data.metrics == {"loss": 1.0, "ap": 0.5}
    assert tracker.settle() == 1


def test_more_metrics_than_one_call_takes(tracker: Tracker) -> None:
    tracker.metrics({f"m{i}": float(i) for i in range(2500)}, 0)
    assert len(read(tracker).data.metrics) == 2500


def test_files(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "a.bin").write_bytes(b"a")
    (tmp_path / "picture.png").write_bytes(b"png")
    tracker.text("hello", "notes/hello.txt")
    tracker.artifact(tmp_path / "folder", "tree")
    tracker.artifact(tmp_path / "picture.png")
    assert not tracker.failures
    assert artifact(tracker, "notes/hello.txt", tmp_path) == b"hello"
    assert artifact(tracker, "tree/deep/a.bin", tmp_path) == b"a"
    assert artifact(tracker, "picture.png", tmp_path) == b"png"


def test_a_model_in_a_store(tracker: Tracker, store: Location, model_folder: str, tmp_path: Path) -> None:
    store.copy_tree_from(Path(model_folder))
    tracker.model(store.uri)
    assert artifact(tracker, "model/data/model/config.json", tmp_path) == Path(model_folder, "config.json").read_bytes()
    assert read(tracker).data.tags["sparse_detr.model"] == store.uri


def test_children(tracker: Tracker) -> None:
    child = tracker.child("trial", tags={"lr": "1"})
    assert read(child).data.tags["mlflow.parentRunId"] == tracker.run_id
    assert read(child).info.experiment_id == read(tracker).info.experiment_id
    assert tracker.child("trial").run_id != child.run_id


def test_a_child_with_a_key_is_found_again(tracker: Tracker, mlflow_uri: str) -> None:
    first = tracker.child("trial", key="it's 1")
    first.finish("FAILED")
    assert tracker.run_id is not None
    again = MlflowTracker.attach(mlflow_uri, tracker.run_id).child("trial", key="it's 1")
    assert again.run_id == first.run_id
    assert read(again).info.status == "RUNNING"
    assert tracker.child("trial", key="it's 2").run_id != first.run_id
    other = open_run(mlflow_uri, "tests", "another parent")
    assert other.child("trial", key="it's 1").run_id != first.run_id


def test_another_process_writes_to_the_run(tracker: Tracker) -> None:
    code = (
        "import sys; from pipelines.tracking.mlflow_tracker import MlflowTracker; "
        "t = MlflowTracker.attach(sys.argv[1], sys.argv[2]); t.metrics({'ap': 0.5}, 3); sys.exit(len(t.failures))"
    )
    assert tracker.run_id is not None
    done = subprocess.run(
        [sys.executable, "-c", code, tracker.uri, tracker.run_id], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert read(tracker).data.metrics == {"ap": 0.5}


def test_nothing_is_active_in_the_process(tracker: Tracker) -> None:
    import mlflow

    tracker.metrics({"x": 1.0}, 0)
    assert mlflow.active_run() is None


# ---- secrets ----


def test_secrets_do_not_reach_mlflow(tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    uri = f"postgresql://me:{SECRET}@db/x"
    tracker.params({"db": uri, "my_password": "a" + SECRET, "note": f"key {SECRET}", "loss.token_scoring_weight": 1})
    tracker.tags({"uri": uri, "api_key": SECRET})
    tracker.text(f"see {uri} and {SECRET}", "note.txt")
    child = tracker.child("c", tags={"uri": uri})
    written = str([read(tracker).data, read(child).data]).encode() + artifact(tracker, "note.txt", tmp_path)
    assert not tracker.failures
    assert SECRET.encode() not in written
    assert b"postgresql://***@db/x" in written
    assert read(tracker).data.params["loss.token_scoring_weight"] == "1"


def test_the_uri_of_the_store_is_shown_without_its_password(caplog: pytest.LogCaptureFixture) -> None:
    tracker = MlflowTracker.attach(f"http://me:{SECRET}@127.0.0.1:9", "0" * 32)
    tracker.text("x", "x.txt")
    assert tracker.failures == {"text": 1}
    assert "http://***@127.0.0.1:9" in caplog.text
    assert SECRET not in caplog.text + repr(tracker)


# ---- a store that is refused, absent, or goes away ----


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "/tmp/x", "ftp://x", "sqlite:", "s3://bucket/x"])
def test_stores_that_mlflow_refuses(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking_uri: .*give sqlite:///path\.db, http://host:port or none"):
        open_run(uri, "tests", "x")


@pytest.mark.parametrize("uri", ["none", None])
def test_nothing_is_recorded(uri: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    tracker = open_run(uri, "tests", "x")
    assert isinstance(tracker, NullTracker)
    every_call(tracker, tmp_path)
    assert (tracker.run_id, tracker.failures) == (None, {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_usual_variable_names_the_store(monkeypatch: pytest.MonkeyPatch, mlflow_uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    assert open_run(None, "tests", "x").uri == mlflow_uri


def test_a_store_that_is_absent_from_the_start(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    tracker = open_run("http://127.0.0.1:9", "tests", "x")
    assert isinstance(tracker, NullTracker)
    every_call(tracker, tmp_path)
    (text,) = warnings(caplog)
    assert text.startswith("MLflow at http://127.0.0.1:9: open failed")


def every_call(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert tracker.child("c").run_id is None
    tracker.params({"a": 1})
    tracker.metrics({"a": 1.0}, 1)
    tracker.tags({"a": "b"})
    tracker.text("a", "a.txt")
    tracker.artifact(tmp_path / "file")
    tracker.model(tmp_path)
    tracker.finish()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_is_killed_in_the_midst(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "END_SECONDS", 4.0)
    with local_mlflow(tmp_path / "server") as server:
        tracker = open_run(server.uri, "tests", "x")
        tracker.metrics({"a": 1.0}, 1)
        tracker.text("hello", "a.txt")
        assert read(tracker).data.metrics == {"a": 1.0}
        kill_listeners(int(server.uri.rpartition(":")[2]))
        begin = time.monotonic()
        tracker.metrics({"a": 2.0}, 2)
        assert time.monotonic() - begin < 25
        tracker.metrics({"a": 3.0}, 3)
        every_call(tracker, tmp_path)
        assert time.monotonic() - begin < 200
    assert tracker.failures["metrics"] >= 3
    assert {"params", "text", "child", "artifact", "model", "finish"} <= tracker.failures.keys()
    *of_each_kind, last = warnings(caplog)
    assert len(of_each_kind) == len(tracker.failures)
    assert last.endswith("3 points of its curves are missing")


def kill_listeners(port: int) -> None:
    """SIGKILL every process that holds the listening socket, the master before it can start another worker."""
    inodes = {
        row[9]
        for row in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if row[3] == "0A" and int(row[1].split(":")[1], 16) == port
    }
    holders = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                links = {os.readlink(link) for link in (folder / "fd").iterdir()}
            except OSError:
                continue
            if links & {f"socket:[{inode}]" for inode in inodes}:
                holders.append(int(folder.name))
    assert holders
    for pid in sorted(holders):
        os.kill(pid, signal.SIGKILL)


class FlakyClient:
    """Plays a server that is away for some calls."""

    def __init__(self, known: dict[str, int] | None = None) -> None:
        self.away = False
        self.points: list[tuple[str, float, int]] = []
        self.ended: list[str] = []
        self.known = known or {}

    def get_run(self, run_id: str) -> Any:
        if self.away:
            raise ConnectionError("no route")
        objects = [SimpleNamespace(key=key, step=step) for key, step in self.known.items()]
        return SimpleNamespace(data=SimpleNamespace(_metric_objs=objects))

    def log_batch(self, run_id: str, metrics: Any = (), tags: Any = ()) -> None:
        if self.away:
            raise ConnectionError("no route")
        self.points += [(m.key, m.value, m.step) for m in metrics]

    def set_terminated(self, run_id: str, status: str) -> None:
        if self.away:
            raise ConnectionError("no route")
        self.ended.append(status)


def test_curves_have_no_hole_after_a_break(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    client = FlakyClient()
    tracker = MlflowTracker("http://x", "run", client)  # type: ignore[arg-type]
    tracker.metrics({"a": 0.0}, 0)
    client.away = True
    tracker.metrics({"a": 1.0}, 1)
    tracker.metrics({"a": 2.0}, 2)  # within the pause: the server is not even asked
    assert tracker.failures == {"metrics": 1}
    client.away = False
    tracker.finish()
    assert client.points == [("a", float(i), i) for i in range(3)]
    assert client.ended == ["FINISHED"]
    assert len(warnings(caplog)) == 1


def test_the_end_waits_for_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.05)
    client = FlakyClient()
    client.away = True
    tracker = MlflowTracker("http://x", "run", client)  # type: ignore[arg-type]
    tracker.metrics({"a": 1.0}, 1)
    back = threading.Timer(0.5, lambda: setattr(client, "away", False))
    back.start()
    tracker.finish()
    assert (client.points, client.ended) == ([("a", 1.0, 1)], ["FINISHED"])


def test_what_is_missing_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tracking, "END_SECONDS", 0.2)
    client = FlakyClient()
    client.away = True
    tracker = MlflowTracker("http://x", "run", client)  # type: ignore[arg-type]
    tracker.metrics({"a": 1.0, "b": 2.0}, 1)
    assert tracker.settle(0.1) == 2
    tracker.finish()
    assert warnings(caplog)[-1].endswith("run run: 2 points of its curves are missing")


def test_steps_that_are_done_anew_are_not_written_again() -> None:
    client = FlakyClient({"a": 3})
    tracker = MlflowTracker("http://x", "run", client, resumed=True)  # type: ignore[arg-type]
    for step in range(2, 6):
        tracker.metrics({"a": float(step), "new": 0.0}, step)
    assert [step for key, _, step in client.points if key == "a"] == [4, 5]
    assert [step for key, _, step in client.points if key == "new"] == [2, 3, 4, 5]


@pytest.mark.parametrize(("status", "longest"), [("KILLED", 1.0), ("FINISHED", 2.0)])
def test_the_end_is_bounded_whatever_the_server_does(
    monkeypatch: pytest.MonkeyPatch, status: str, longest: float
) -> None:
    """A call that never returns may take 30 s while the training goes on, and no more than is left at its end."""
    monkeypatch.setattr(tracking, "KILLED_SECONDS", 1.0)
    monkeypatch.setattr(tracking, "END_SECONDS", 2.0)
    release = threading.Event()

    class Silent(FlakyClient):
        def log_batch(self, run_id: str, metrics: Any = (), tags: Any = ()) -> None:
            release.wait(60)

        def set_terminated(self, run_id: str, status: str) -> None:
            release.wait(60)

    tracker = MlflowTracker("http://x", "run", Silent())  # type: ignore[arg-type]
    tracker._paused_until = time.monotonic() + 100
    tracker.metrics({"a": 1.0}, 1)
    begin = time.monotonic()
    tracker.finish(status)
    # The points, the tags and the end get a second each at least.
    assert time.monotonic() - begin < longest + 4
    release.set()


def test_a_run_that_goes_on_while_the_server_is_away_stays_the_same_run(mlflow_uri: str) -> None:
    assert continue_run(mlflow_uri, "0" * 32) is None
    away = continue_run("http://127.0.0.1:9", "a-run")
    assert away is not None
    assert (away.run_id, away.uri) == ("a-run", "http://127.0.0.1:9")


def test_a_server_that_was_away_at_the_restart_is_asked_once_it_is_back() -> None:
    client = FlakyClient({"a": 3})
    client.away = True
    tracker = MlflowTracker("http://x", "run", client, resumed=True)  # type: ignore[arg-type]
    tracker.metrics({"a": 3.0}, 3)
    client.away = False
    tracker.metrics({"a": 4.0}, 4)
    tracker.finish()
    assert client.points == [("a", 4.0, 4)]


def test_system_metrics_become_curves_and_outlast_a_break(monkeypatch: pytest.MonkeyPatch, mlflow_uri: str) -> None:
    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 0.0)
    tracker = open_run(mlflow_uri, "tests", "system")
    original, away = MlflowClient.log_batch, threading.Event()

    def log_batch(self: MlflowClient, *words: Any, **more: Any) -> None:
        if away.is_set():
            raise ConnectionError("no route")
        original(self, *words, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    with system_metrics(tracker, "node_0", sample_seconds=0.05, samples=1):
        away.set()
        wait_until(lambda: tracker.failures.get("metrics", 0) > 1)
        away.clear()
        wait_until(lambda: "system/node_0/cpu_utilization_percentage" in read(tracker).data.metrics)
    metrics = read(tracker).data.metrics
    assert metrics["system/node_0/system_memory_usage_megabytes"] > 100
    assert len([name for name in metrics if name.startswith("system/node_0/")]) >= 6


def wait_until(reached: Any) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_dies_and_returns_has_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 1.0)
    with local_mlflow(tmp_path / "server") as server:
        tracker = open_run(server.uri, "tests", "x")
        port = int(server.uri.rpartition(":")[2])
        for step in range(12):
            if step == 4:
                kill_listeners(port)
            tracker.metrics({"a": float(step)}, step)
            if step == 7:
                again = subprocess.Popen(
                    [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
                     "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path / 'server' / 'mlflow.db'}"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
        try:
            tracker.finish()
            history = MlflowClient(server.uri).get_metric_history(str(tracker.run_id), "a")
            assert [(point.step, point.value) for point in history] == [(i, float(i)) for i in range(12)]
            assert read(tracker).info.status == "FINISHED"
        finally:
            os.killpg(again.pid, signal.SIGTERM)
            again.wait()


# ---- where a run came from ----


def test_code_environment_and_data_are_written(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q", "-b", "trunk"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    (tmp_path / "file").write_text("x")
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    monkeypatch.chdir(tmp_path)
    config = replace(RunConfig(), tracking_uri=mlflow_uri, experiment="tests")
    with open_tracker(config) as tracker:
        tracker.datasets([DataUse(name="train", source="s3://b/train.json", digest="ab" * 32, images=7, boxes=9)])
    run = read(tracker)
    assert run.data.tags["mlflow.source.git.commit"] == commit.stdout.strip()
    assert run.data.tags["mlflow.source.git.branch"] == "trunk"
    assert run.data.tags["sparse_detr.git_changes"] == "1"
    assert run.data.tags["sparse_detr.version.torch"] == torch.__version__
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("train", ("ab" * 32)[:32])
    assert json.loads(used.dataset.profile) == {"images": 7, "boxes": 9}
    assert json.loads(artifact(tracker, "config.json", tmp_path))["optimizer"]["lr"] == config.optimizer.lr


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert not [name for name in provenance_tags() if "git" in name]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance_tags()["sparse_detr.version.python"]


def test_a_call_that_never_returns_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "CALL_SECONDS", 0.3)
    release = threading.Event()

    class Silent(FlakyClient):
        def log_batch(self, run_id: str, metrics: Any = (), tags: Any = ()) -> None:
            release.wait(30)

    tracker = MlflowTracker("http://x", "run", Silent())  # type: ignore[arg-type]
    begin = time.monotonic()
    tracker.metrics({"a": 0.0}, 0)
    assert 0.3 <= time.monotonic() - begin < 5
    assert tracker.failures == {"metrics": 1}
    release.set()


def test_failures_are_logged_once_a_kind_and_counted(tracker: Tracker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        tracker.artifact("/no/such/file")
    tracker.text("", "../outside.txt")
    assert tracker.failures == {"artifact": 3, "text": 1}
    assert len(warnings(caplog)) == 2
    tracker.finish()
    assert read(tracker).data.tags["sparse_detr.failed_calls"] == "4"
    assert read(tracker).info.status == "FINISHED"
