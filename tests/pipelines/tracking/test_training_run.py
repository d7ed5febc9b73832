"""A resumed training writes to the run it had, wherever the tracking URI comes from, or to a new one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.recipes.config import RunConfig
from pipelines.tracking.training_run import open_tracker


def _once(config: RunConfig, run_id: str | None = None) -> str | None:
    with open_tracker(config, run_id=run_id) as tracker:
        tracker.metrics({"loss": 1.0}, 1)
    assert tracker.failures == {}
    return tracker.run_id


@pytest.mark.parametrize("by_environment", [True, False])
def test_the_same_store_goes_on_with_the_same_run(
    quick_run: RunConfig, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri if by_environment else "sqlite:////nowhere/else.db")
    config = replace(quick_run, tracking_uri=None if by_environment else mlflow_uri)
    first = _once(config)
    assert first is not None
    client = MlflowClient(mlflow_uri)
    seen = []
    with open_tracker(config, run_id=first) as tracker:
        seen.append(client.get_run(first).info.status)
        tracker.metrics({"loss": 2.0}, 2)
    assert (tracker.run_id, seen) == (first, ["RUNNING"])
    assert client.get_run(first).info.status == "FINISHED"
    assert [point.value for point in client.get_metric_history(first, "loss")] == [1.0, 2.0]


def test_another_store_gets_a_new_run(quick_run: RunConfig, mlflow_uri: str) -> None:
    found = _once(replace(quick_run, tracking_uri=mlflow_uri), run_id="f" * 32)
    assert found not in (None, "f" * 32)


def test_none_records_nothing(quick_run: RunConfig, tmp_path: Path) -> None:
    assert _once(replace(quick_run, tracking_uri="none"), run_id="f" * 32) is None
