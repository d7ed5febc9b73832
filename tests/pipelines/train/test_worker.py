"""One worker of a training, without Ray around it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cluster.access import DriverAccess
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train import worker
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.news import Begun, Fact
from pipelines.train.worker import WorkerTask, train_worker
from sparse_detr.config_dict import to_dict
from sparse_detr.errors import CheckpointError
from sparse_detr.weights.model_folder import save_model


def test_workers_that_go_on_need_no_starting_weights(
    quick_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Fact] = []
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1, get_node_rank=lambda: 0)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: context)
    box = SimpleNamespace(put=SimpleNamespace(remote=told.append))
    start = tmp_path / "start"
    short = {"data.train_limit": 4, "training.global_batch": 4, "training.init_model": str(start)}
    config = override(quick_run, short)

    def train(epochs: int) -> list[dict[str, float]]:
        run = to_dict(override(config, {"training.epochs": epochs}))
        task: Any = WorkerTask(config=run, box=box, run=None, access=DriverAccess({}))
        return train_worker({"task": task}).history

    with pytest.raises(CheckpointError, match="start"):
        train(1)
    save_model(start, build_loop(quick_run).model)
    first = train(1)
    shutil.rmtree(start)
    assert train(2)[:1] == first
    assert [fact.step for fact in told if isinstance(fact, Begun)] == [0, 1]
