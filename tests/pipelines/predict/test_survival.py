"""Inference that is killed, starved and cut off for real: every image exactly once, and no failure that passes."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.predict.parts import read_detections
from pipelines.services.s3_server import LocalS3
from sparse_detr.detector import SparseDetr
from sparse_detr.storage.location import Location, locate
from sparse_detr.weights.model_folder import save_model
from tests.faulty_store import FaultyStore, faulty_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MARK = "SPARSE_DETR_TEST_MARK"
HOOKS = Path(__file__).parents[2] / "hooks"
IMAGES, STORED = 120, 28
Rows = list[dict[str, Any]]


@dataclass
class Job:
    """`sparse-detr predict` as a user starts it, in a process group of its own."""

    arguments: list[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    process: subprocess.Popen[str] | None = None

    def start(self) -> Job:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
        command = [sys.executable, "-m", "pipelines.cli", "predict", *self.arguments]
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(
                command, stdout=stream, stderr=stream, text=True, start_new_session=True,
                env=clean | dict(self.environment) | {MARK: self.mark},
            )  # fmt: skip
        return self

    def wait(self, seconds: float = 240) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def kill_when(self, reached: Callable[[], bool], seconds: float = 120) -> bool:
        """SIGKILL the driver once a condition holds; False where it ended before."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if reached():
                os.kill(self.process.pid, signal.SIGKILL)
                self.process.wait()
                return True
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)
        return False

    def others(self) -> dict[int, str]:
        """Command lines of the processes that it started and that live."""
        found = {}
        wanted = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[[int, int, int], bytes]) -> Path:
    """Images of three shapes, and two that are broken."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(IMAGES - 2):
        height, width = ((96, 128), (64, 64), (128, 96))[number % 3]
        (folder / f"{number:04d}.jpg").write_bytes(make_picture(number, height, width))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_bytes(b"no image")
    return folder


def _arguments(model: str, images: str, output: str, *more: str) -> list[str]:
    return ["--model", model, "--images", images, "--output", output, "--short-side", "64", "--max-side", "96",
            "--score-threshold", "0", "--max-detections", "10", "--images-per-block", "4", "--workers", "2",
            *more]  # fmt: skip


def _rows(output: str | Location) -> Rows:
    place = output if isinstance(output, Location) else locate(output)
    return pa.concat_tables(read_detections(place)).to_pylist()


@pytest.fixture(scope="module")
def undisturbed(many: Path, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Rows of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(_arguments(model_folder, str(many), str(folder / "out")), folder / "log").start()
    assert job.wait() == 0, job.log.read_text()
    rows = _rows(str(folder / "out"))
    assert len({row["key"] for row in rows}) == len(rows) == IMAGES
    assert sum(row["error"] is not None for row in rows) == 2
    return rows


def test_a_driver_that_is_killed_again_and_again_loses_and_doubles_nothing(
    undisturbed: Rows, many: Path, model_folder: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = _arguments(model_folder, str(many), str(output), "--csv")

    def parts(count: int) -> Callable[[], bool]:
        return lambda: len(list((output / "detections").glob("part-*.parquet"))) >= count

    def written(name: str) -> Callable[[], bool]:
        return lambda: (output / name).exists()

    killed: list[Job] = []
    for number, reached in enumerate([written("_manifest.parquet"), parts(1), parts(14), written("errors.parquet")]):
        job = Job(arguments, tmp_path / f"log{number}").start()
        assert job.kill_when(reached), job.log.read_text()
        killed.append(job)
    last = Job(arguments, tmp_path / "last").start()
    assert last.wait() == 0, last.log.read_text()
    assert _rows(str(output)) == undisturbed
    success = json.loads((output / "_SUCCESS.json").read_text())
    assert [part["name"] for part in success["parts"]] == sorted(f.name for f in (output / "detections").iterdir())
    assert pq.read_table(output / "errors.parquet").num_rows == 2
    assert "were done before" in last.log.read_text() + killed[-1].log.read_text()
    deadline = time.monotonic() + 240
    while left := {pid: line for job in killed for pid, line in job.others().items()}:
        assert time.monotonic() < deadline, left
        time.sleep(1)


def test_a_killed_actor_is_replaced(undisturbed: Rows, many: Path, model_folder: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = Job(_arguments(model_folder, str(many), str(output)), tmp_path / "log").start()
    deadline = time.monotonic() + 120
    while len(list((output / "detections").glob("*"))) < 3:
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.02)
    workers = [pid for pid, line in job.others().items() if "MapWorker" in line]
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    assert job.wait() == 0, job.log.read_text()
    assert _rows(str(output)) == undisturbed


def test_images_that_kill_or_hang_their_worker_get_a_row(
    many: Path, model_folder: str, undisturbed: Rows, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted(many.iterdir())[:20]:
        (images / file.name).write_bytes(file.read_bytes())
    for name, content in (("0003a.jpg", b"CRASH"), ("0009a.jpg", b"HANG"), ("0015a.jpg", b"SLOW")):
        (images / name).write_bytes(content)
    environment = {"PLAY_BAD_DECODER": "1", "PYTHONPATH": f"{HOOKS}:{os.environ.get('PYTHONPATH', '')}"}
    arguments = _arguments(model_folder, str(images), str(tmp_path / "out"), "--image-seconds", "6",
                           "--error-budget", "100%")  # fmt: skip
    job = Job(arguments, tmp_path / "log", environment).start()
    assert job.wait(400) == 0, job.log.read_text()
    rows = {row["key"]: row for row in _rows(str(tmp_path / "out"))}
    assert len(rows) == 23
    errors = {key: (row["error"]["stage"], row["error"]["type"]) for key, row in rows.items() if row["error"]}
    assert errors == {"0003a.jpg": ("decode", "ProcessDiedError"), "0009a.jpg": ("decode", "TimeoutError"),
                      "0015a.jpg": ("decode", "TimeoutError")}  # fmt: skip
    assert {row["key"] for row in undisturbed[:20]} <= rows.keys()


def test_a_batch_that_memory_does_not_hold_is_run_image_by_image(many: Path, model_folder: str, tmp_path: Path) -> None:
    environment = {"PLAY_BAD_DECODER": "1", "PLAY_SHORT_MEMORY": "1",
                   "PYTHONPATH": f"{HOOKS}:{os.environ.get('PYTHONPATH', '')}"}  # fmt: skip
    arguments = _arguments(model_folder, str(many), str(tmp_path / "out"), "--limit", "8", "--workers", "1")
    job = Job(arguments, tmp_path / "log", environment).start()
    assert job.wait(400) == 0, job.log.read_text()
    rows = _rows(str(tmp_path / "out"))
    assert len(rows) == 8
    assert all(row["error"] is None for row in rows)


@pytest.mark.parametrize("cpus", [1, 2])
def test_one_and_two_cpus_are_enough(
    many: Path, model_folder: str, undisturbed: Rows, tmp_path: Path, cpus: int
) -> None:
    code = f"""
import sys
from pipelines.cluster.session import ray_session
from pipelines.predict.config import PredictConfig
from pipelines.predict.run import predict
config = PredictConfig(model={model_folder!r}, images={str(many)!r}, output={str(tmp_path / "out")!r}, short_side=64,
    max_side=96, score_threshold=0.0, max_detections=10, images_per_block=4, workers=2)
predict(config, connect=lambda: ray_session(logical_cpus={cpus}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert _rows(str(tmp_path / "out")) == undisturbed


def test_a_full_disk_is_said_and_survived(undisturbed: Rows, many: Path, model_folder: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small disk here")
    try:
        job = Job(_arguments(model_folder, str(many), str(disk / "out")), tmp_path / "log").start()
        assert job.wait() == 2, job.log.read_text()
        assert "the disk is full; make room" in job.log.read_text().replace("\n", " ")
        assert "Traceback" not in job.log.read_text()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = Job(job.arguments, tmp_path / "log2").start()
        assert again.wait() == 0, again.log.read_text()
        assert _rows(str(disk / "out")) == undisturbed
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


# --- a store that fails ---


@pytest.fixture
def busy(s3: LocalS3, store: Location, many: Path, model: SparseDetr) -> Iterator[tuple[FaultyStore, Location]]:
    """A proxy before the store, and a prefix with a model and images."""
    for file in sorted(many.iterdir())[:STORED]:
        store.child("images", file.name).write_bytes(file.read_bytes())
    save_model(store.child("model").uri, model)
    with faulty_store(s3.endpoint) as proxy:
        yield proxy, store


def _through(proxy: FaultyStore) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": proxy.endpoint, "AWS_ENDPOINT_URL_S3": proxy.endpoint}


def _stored(store: Location, *more: str) -> list[str]:
    return _arguments(store.child("model").uri, store.child("images").uri, store.child("out").uri, *more)


def _assert_sound(store: Location, undisturbed: Rows) -> None:
    rows = _rows(store.child("out"))
    expected = {row["key"]: row["detections"] for row in undisturbed}
    assert len(rows) == STORED
    assert [row["key"] for row in rows if row["error"] is not None] == []
    assert {row["key"]: row["detections"] for row in rows} == {row["key"]: expected[row["key"]] for row in rows}


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_store_that_fails_often_makes_no_error_row(
    busy: tuple[FaultyStore, Location], undisturbed: Rows, tmp_path: Path, rate: float
) -> None:
    proxy, store = busy
    job = Job(_stored(store), tmp_path / "log", _through(proxy)).start()
    deadline = time.monotonic() + 120
    while proxy.requests < 30 and job.process is not None and job.process.poll() is None:
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.01)
    proxy.rate, proxy.delay = rate, 5.0 if rate < 0.5 else 1.0
    code = job.wait(500)
    if code != 0:
        assert code in (2, 75), job.log.read_text()
        assert "Traceback" not in job.log.read_text()
        proxy.rate = 0.0
        again = Job(job.arguments, tmp_path / "log2", _through(proxy)).start()
        assert again.wait() == 0, again.log.read_text()
    assert sum(proxy.failed.values()) > 3
    _assert_sound(store, undisturbed)


def test_a_store_that_is_away_is_waited_for(
    busy: tuple[FaultyStore, Location], undisturbed: Rows, tmp_path: Path
) -> None:
    proxy, store = busy
    seconds = float(os.environ.get("SPARSE_DETR_TEST_AWAY_SECONDS", "40"))
    job = Job(_stored(store), tmp_path / "log", _through(proxy)).start()
    folder = store.child("out", "detections")
    deadline = time.monotonic() + 240
    while not (folder.exists() and len(folder.list()) >= 2):
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.05)
    proxy.away = True
    time.sleep(seconds)
    assert job.process is not None
    assert job.process.poll() is None, job.log.read_text()
    proxy.away = False
    assert job.wait() == 0, job.log.read_text()
    assert proxy.failed["away"] > 0
    _assert_sound(store, undisturbed)


def test_a_store_that_stays_away_ends_the_run_unfinished(
    busy: tuple[FaultyStore, Location], undisturbed: Rows, tmp_path: Path
) -> None:
    proxy, store = busy
    job = Job(_stored(store, "--store-patience", "5"), tmp_path / "log", _through(proxy)).start()
    folder = store.child("out", "detections")
    deadline = time.monotonic() + 240
    while not (folder.exists() and len(folder.list()) >= 2):
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.05)
    proxy.away = True
    assert job.wait() == 75, job.log.read_text()
    proxy.away = False
    words = " ".join(job.log.read_text().split())
    assert f"of {STORED} images are not done" in words
    assert "the same command goes on" in words
    again = Job(job.arguments, tmp_path / "log2", _through(proxy)).start()
    assert again.wait() == 0, again.log.read_text()
    _assert_sound(store, undisturbed)
