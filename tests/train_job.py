"""`sparse-detr train` as a process that can be killed, on the small pictures of `quick_run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.train.engine.checkpoint_store import CheckpointStore
from sparse_detr.storage.location import locate
from tests.predict_job import Job
from tests.small_training import SMALL

SIZES: Mapping[str, Any] = {
    **SMALL,
    "model.dropout": 0.1,
    "training.global_batch": 2,
    "training.micro_batch": 1,
    "training.explain_images": 0,
}
"""Twelve steps an epoch on the 24 pictures of `shapes_folder`, each of two micro-batches."""


def words(changes: Mapping[str, Any]) -> list[str]:
    """Options of the command line for these fields."""
    found = []
    for name, value in changes.items():
        values = value if isinstance(value, list) else [value]
        found += [f"--{name.replace('_', '-')}", *map(str, values)]
    return found


def train_job(data: Path, output: str, log: Path, environment: Mapping[str, str], **training: Any) -> Job:
    """The recipe `tiny`, made as small as `quick_run`, on `shapes_folder`; more fields of `training` by keyword."""
    places = {
        "data.train_annotations": data / "train.json",
        "data.train_images": data / "train",
        "data.val_annotations": data / "val.json",
        "data.val_images": data / "val",
    }
    more = {name if "." in name or name in ("existing", "tracking_uri") else f"training.{name}": value
            for name, value in training.items()}  # fmt: skip
    changes = {"tracking_uri": "none", **SIZES, **places, "output": output, **more}
    return Job(["tiny", *words(changes)], log, environment, command="train").start()


def wait_until(reached: Callable[[], object], job: Job, seconds: float = 400) -> None:
    """Until a condition holds, while the job runs."""
    deadline = time.monotonic() + seconds
    assert job.process is not None
    while not reached():
        if time.monotonic() >= deadline:
            job.process.kill()  # or the next test waits for its CPUs
            raise AssertionError(job.log.read_text())
        assert job.process.poll() is None, job.log.read_text()
        time.sleep(0.05)


def steps_kept(output: str, steps_per_epoch: int = 12) -> int:
    """Steps that are in the newest whole checkpoint."""
    newest = CheckpointStore(folder=locate(output).child("checkpoints")).newest()
    return 0 if newest is None else newest.epoch * steps_per_epoch + newest.epoch_step
