"""A command, mostly `sparse-detr predict`, as a process that can be killed, and the rows that it leaves."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.predict.parts import read_detections
from sparse_detr.storage.location import Location, locate

MARK = "SPARSE_DETR_TEST_MARK"
HOOKS = Path(__file__).parent / "hooks"
Rows = list[dict[str, Any]]


@dataclass
class Job:
    """`sparse-detr predict`, or another command, as a user starts it, in a process group of its own."""

    arguments: list[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    process: subprocess.Popen[str] | None = None
    command: str = "predict"

    def start(self) -> Job:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_"))}
        command = [sys.executable, "-m", "pipelines.cli", self.command, *self.arguments]
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


def arguments(model: str, images: str, output: str, *more: str, workers: int = 2) -> list[str]:
    """Of a run on images so small that a block takes a fraction of a second."""
    return ["--model", model, "--images", images, "--output", output, "--short-side", "64", "--max-side", "96",
            "--score-threshold", "0", "--max-detections", "10", "--images-per-block", "4", "--workers", str(workers),
            *more]  # fmt: skip


def played(**variables: str) -> dict[str, str]:
    """Environment in which `hooks/sitecustomize.py` plays what the variables say."""
    return {"PLAY_BAD_DECODER": "1", "PYTHONPATH": f"{HOOKS}:{os.environ.get('PYTHONPATH', '')}", **variables}


def rows_of(output: str | Location) -> Rows:
    """All rows, in the order of the manifest."""
    place = output if isinstance(output, Location) else locate(output)
    return pa.concat_tables(read_detections(place)).to_pylist()
