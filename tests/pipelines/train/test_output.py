from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train.output import best_checkpoint, claim_output, write_result, write_run
from sparse_detr.errors import CheckpointError, ConfigError, OutputExistsError
from sparse_detr.storage.location import locate


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(output=str(tmp_path / "run"))


def leave_results(config: RunConfig, run_id: str | None = "abc") -> None:
    output = locate(config.output)
    write_run(output, config, run_id)
    write_result(output, {"history": []})
    output.child("checkpoints", "epoch_0001").child("trainer.pt").write_bytes(b"x")
    output.child("notes.txt").write_bytes(b"the user's own")


def test_a_free_folder_is_claimed(config: RunConfig) -> None:
    assert claim_output(locate(config.output), config) is None


def test_results_of_another_run_are_refused(config: RunConfig) -> None:
    leave_results(config)

    with pytest.raises(OutputExistsError, match=r"run\.json, checkpoints, result\.json.*overwrite or resume"):
        claim_output(locate(config.output), config)


def test_overwrite_deletes_the_runs_files_alone(config: RunConfig) -> None:
    leave_results(config)
    output = locate(config.output)

    assert claim_output(output, replace(config, existing="overwrite")) is None
    assert output.list() == ["notes.txt"]


def test_resume_finds_the_mlflow_run_and_keeps_everything(config: RunConfig) -> None:
    leave_results(config)
    output = locate(config.output)
    before = output.list(recursive=True)

    longer = override(config, {"training.epochs": 99, "existing": "resume"})
    assert claim_output(output, longer) == "abc"
    assert output.list(recursive=True) == before


def test_resume_refuses_another_model(config: RunConfig) -> None:
    leave_results(config)

    with pytest.raises(ConfigError, match=r"model: the run in .* has another one"):
        claim_output(locate(config.output), override(config, {"model.keep_ratio": 0.7, "existing": "resume"}))


def test_resume_of_a_folder_without_its_config_is_refused(config: RunConfig) -> None:
    locate(config.output).child("checkpoints", "x").write_bytes(b"x")

    with pytest.raises(CheckpointError, match=r"run\.json is lacking"):
        claim_output(locate(config.output), replace(config, existing="resume"))


@pytest.mark.parametrize(
    "content", [b'{"config": {"na', b"\xff\xfe", b"[]", b'{"run_id": null}', b'{"config": {}, "run_id": null}']
)
def test_resume_of_a_damaged_folder_is_refused(config: RunConfig, content: bytes) -> None:
    locate(config.output).child("run.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"run/run\.json: not what a training writes .*existing to overwrite"):
        claim_output(locate(config.output), replace(config, existing="resume"))


def test_no_password_is_left_in_the_folder(config: RunConfig) -> None:
    config = replace(config, tracking_uri="postgresql://me:hush@host:5432/db")
    leave_results(config)

    written = locate(config.output).child("run.json").read_bytes()
    assert b"hush" not in written
    assert b"host:5432/db" in written
    assert claim_output(locate(config.output), replace(config, existing="resume")) == "abc"


def test_the_best_checkpoint_has_the_highest_ap_and_else_is_the_last() -> None:
    assert best_checkpoint([("a", {"ap": 0.1}), ("b", {"ap": 0.3}), ("c", {"ap": 0.2})]) == "b"
    assert best_checkpoint([("a", {}), ("b", {})]) == "b"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        best_checkpoint([])


def test_records_are_json(config: RunConfig) -> None:
    leave_results(config)

    assert json.loads(locate(config.output).child("run.json").read_bytes())["config"]["name"] == "run"
