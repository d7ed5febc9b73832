from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import field_values, override
from pipelines.recipes.registry import get_recipe
from pipelines.train.engine.checkpoint_store import CheckpointStore
from pipelines.train.output import (
    MAY_CHANGE,
    begin_run,
    best_checkpoint,
    claim_output,
    continued_run,
    differences,
    write_result,
)
from sparse_detr.config_dict import to_dict
from sparse_detr.errors import CheckpointError, ConfigError, OutputExistsError
from sparse_detr.storage.location import locate


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(output=str(tmp_path / "run"))


def resumed(config: RunConfig) -> str | None:
    """The MLflow run that `existing: resume` finds."""
    config = replace(config, existing="resume")
    return continued_run(claim_output(locate(config.output), config), config)[1]


def leave_results(config: RunConfig, run_id: str | None = "abc") -> None:
    output = locate(config.output)
    begin_run(output, config, run_id)
    write_result(output, {"history": []})
    output.child("checkpoints", "epoch_0001").child("trainer.pt").write_bytes(b"x")
    output.child("notes.txt").write_bytes(b"the user's own")


def test_a_free_folder_is_claimed(config: RunConfig) -> None:
    assert claim_output(locate(config.output), config).found == ()
    assert resumed(config) is None


def test_results_of_another_run_are_refused(config: RunConfig) -> None:
    leave_results(config)

    with pytest.raises(OutputExistsError, match=r"result\.json, run\.json, checkpoints.*overwrite or resume"):
        claim_output(locate(config.output), config)


def test_overwrite_deletes_the_runs_files_alone(config: RunConfig) -> None:
    leave_results(config)
    output = locate(config.output)

    claim = claim_output(output, replace(config, existing="overwrite"))
    assert continued_run(claim, config)[1] is None
    claim.clear()
    assert output.list() == ["notes.txt"]


def test_overwrite_spares_what_the_run_reads(config: RunConfig) -> None:
    leave_results(config)
    output = locate(config.output)
    before = output.list(recursive=True)

    start = {"existing": "overwrite", "training.init_model": output.child("checkpoints/epoch_0001/model").uri}
    with pytest.raises(OutputExistsError, match=r"training\.init_model: .* is in .*checkpoints, which output would"):
        claim_output(output, override(config, start))
    assert output.list(recursive=True) == before
    fresh = override(config, {**start, "output": f"{config.output}/new"})
    claim_output(locate(fresh.output), fresh)


def test_overwrite_spares_what_no_training_wrote(config: RunConfig) -> None:
    output = locate(config.output)
    output.child("model/book.stl").write_bytes(b"a ship")

    for word in ("refuse", "overwrite", "resume"):
        with pytest.raises(OutputExistsError, match="holds model that no run of ours wrote"):
            claim_output(output, replace(config, existing=word))


def test_resume_finds_the_mlflow_run_and_keeps_everything(config: RunConfig) -> None:
    leave_results(config)
    output = locate(config.output)
    before = output.list(recursive=True)

    longer = override(config, {"training.epochs": 99, "existing": "resume"})
    assert resumed(longer) == "abc"
    assert output.list(recursive=True) == before


@pytest.mark.parametrize("alias", ["@best", "/latest", "/3"])
def test_a_run_goes_on_though_the_alias_of_its_start_has_moved(config: RunConfig, alias: str) -> None:
    leave_results(override(config, {"training.init_model": "models:/cells/3"}))
    again = override(config, {"training.init_model": f"models:/cells{alias}", "existing": "resume"})
    kept, run_id = continued_run(claim_output(locate(config.output), again), again)
    assert (kept.training.init_model, run_id) == ("models:/cells/3", "abc")


@pytest.mark.parametrize("other", ["models:/cells/4", "models:/others@best", "/a/folder"])
def test_another_start_is_refused(config: RunConfig, other: str) -> None:
    leave_results(override(config, {"training.init_model": "models:/cells/3"}))
    with pytest.raises(ConfigError, match=r"training\.init_model: 'models:/cells/3', now"):
        resumed(override(config, {"training.init_model": other}))


def test_a_run_that_begins_again_is_not_complete(config: RunConfig) -> None:
    leave_results(config)

    begin_run(locate(config.output), config, "abc")
    assert not locate(config.output).child("result.json").exists()


def test_resume_with_fewer_epochs_than_are_done_is_refused(config: RunConfig) -> None:
    leave_results(config)
    sealed = ("epoch_0003", "epoch_0399_step_000007", "epoch_0399_step_000010")
    for name in (*(f"{name}/checkpoint.json" for name in sealed), "epoch_0401/trainer.pt", "epoch_x"):
        locate(config.output).child("checkpoints", name).write_bytes(b"x")

    with pytest.raises(ConfigError, match=r"training\.epochs: 399, but the run in .* has done or begun 400; give at"):
        resumed(override(config, {"training.epochs": 399}))
    assert resumed(override(config, {"training.epochs": 400})) == "abc"


def size_of_micro_batches(config: RunConfig) -> int | None:
    config = replace(config, existing="resume")
    return continued_run(claim_output(locate(config.output), config), config)[0].training.micro_batch


def test_a_run_keeps_its_micro_batches_when_its_workers_change(config: RunConfig) -> None:
    assert size_of_micro_batches(override(config, {"training.workers": 4})) == 4
    leave_results(override(config, {"training.workers": 4}))

    assert size_of_micro_batches(override(config, {"training.workers": 2})) == 4
    assert size_of_micro_batches(override(config, {"training.workers": 3, "training.micro_batch": 4})) == 4
    with pytest.raises(ConfigError, match=r"training\.micro_batch: 4, now 8"):
        size_of_micro_batches(override(config, {"training.micro_batch": 8}))
    with pytest.raises(ConfigError, match=r"training\.workers: 8, but training\.micro_batch: 4 cuts .* at most 4"):
        size_of_micro_batches(override(config, {"training.workers": 8}))


RECORD_0_1 = Path(__file__).parents[2] / "fixtures" / "version_0_1" / "run.json"


def test_a_run_of_version_0_1_goes_on(tmp_path: Path) -> None:
    """Whatever fields its config lacks: by default each does what that version did."""
    output = locate(tmp_path / "run")
    output.child("run.json").write_bytes(RECORD_0_1.read_bytes())
    output.child("checkpoints", "epoch_0001", "checkpoint.json").write_bytes(b"x")
    config = override(get_recipe("tiny"), {"output": output.uri, "training.workers": 1})

    assert size_of_micro_batches(config) == 4
    assert resumed(config) == "abc"
    with pytest.raises(ConfigError, match=r"training\.seed: 42, now 7"):
        resumed(override(config, {"training.seed": 7}))


def test_a_record_without_a_field_of_the_model_is_refused(config: RunConfig) -> None:
    leave_results(config)
    file = locate(config.output).child("run.json")
    record = json.loads(file.read_bytes())
    del record["config"]["model"]["keep_ratio"]
    file.write_bytes(json.dumps(record).encode())

    with pytest.raises(CheckpointError, match=r"model\.keep_ratio: missing"):
        resumed(config)


CHANGES: dict[str, object] = {
    "model.backbone.name": "resnet18", "model.backbone.norm": "group_norm", "model.heads": 4, "model.channels": 128,
    "model.attention": "full", "data.cache": "pixels", "data.augment.max_side": 2000, "data.max_side": 2000,
    "data.augment.crop_max": 700, "optimizer.schedule": "cosine", "optimizer.betas": [0.5, 0.9],
    "training.precision": "bfloat16", "training.global_batch": 32, "training.workers": 2, "existing": "resume",
    "data.broken_images": "skip", "optimizer.freeze": ["backbone"], "training.activation_checkpointing": ["decoder"],
}  # fmt: skip
"""Values for fields that a plain change of their default would make invalid."""


def other_value(name: str, value: object) -> object:
    if name in CHANGES:
        return CHANGES[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.25
    if isinstance(value, list):
        return value[:-1]
    return f"{value or ''}other"


@pytest.mark.parametrize("name", list(field_values(to_dict(RunConfig()))))
def test_every_field_may_change_or_is_refused_by_name(name: str) -> None:
    """A field that is added later is refused until somebody decides that it may change."""
    before = to_dict(RunConfig())
    old = field_values(before)[name]
    new = other_value(name, old)
    assert new != old
    now = copy.deepcopy(before)
    *parents, leaf = name.split(".")
    inner = now
    for parent in parents:
        inner = inner[parent]
    inner[leaf] = new

    found = differences(before, now)
    assert found == ([] if name in MAY_CHANGE else [f"{name}: {old!r}, now {new!r}"])


def test_the_table_names_fields_that_exist_and_nothing_that_decides_what_is_learned() -> None:
    names = set(field_values(to_dict(RunConfig())))
    assert names >= MAY_CHANGE
    learned = {"training.global_batch", "training.seed", "training.precision", "training.ema_decay"}
    assert not learned & MAY_CHANGE
    assert not [name for name in MAY_CHANGE if name.startswith(("model.", "loss.", "optimizer.", "data.augment."))]


def test_resume_names_all_differences_with_both_values_and_changes_nothing(config: RunConfig) -> None:
    leave_results(config)
    output = locate(config.output)
    before = output.list(recursive=True)
    changes = {"training.global_batch": 32, "training.seed": 7, "model.keep_ratio": 0.7, "training.epochs": 9}

    with pytest.raises(ConfigError) as caught:
        resumed(override(config, changes))
    message = str(caught.value)
    for part in ("training.global_batch: 16, now 32", "training.seed: 42, now 7", "model.keep_ratio: 0.1, now 0.7"):
        assert part in message
    assert "epochs" not in message
    assert output.list(recursive=True) == before


def test_differences_show_no_secret(config: RunConfig) -> None:
    leave_results(config)
    where = "https://me:hush@host/weights.pth"

    with pytest.raises(ConfigError, match=r"training\.init_backbone: None, now 'https://\*\*\*@host") as caught:
        resumed(override(config, {"training.init_backbone": where}))
    assert "hush" not in str(caught.value)


def test_resume_of_a_folder_without_its_config_is_refused(config: RunConfig) -> None:
    locate(config.output).child("checkpoints", "x").write_bytes(b"x")

    with pytest.raises(OutputExistsError, match="holds checkpoints that no run of ours wrote"):
        resumed(config)


@pytest.mark.parametrize(
    "content", [b'{"config": {"na', b"\xff\xfe", b"[]", b'{"run_id": null}', b'{"config": {}, "run_id": null}']
)
def test_resume_of_a_damaged_folder_is_refused(config: RunConfig, content: bytes) -> None:
    locate(config.output).child("run.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"run/run\.json: not what a training writes .*existing to overwrite"):
        resumed(config)


def test_no_password_is_left_in_the_folder(config: RunConfig) -> None:
    config = replace(config, tracking_uri="postgresql://me:hush@host:5432/db")
    leave_results(config)

    written = locate(config.output).child("run.json").read_bytes()
    assert b"hush" not in written
    assert b"host:5432/db" in written
    assert resumed(config) == "abc"


def test_the_best_checkpoint_has_the_highest_ap_and_else_is_the_last(tmp_path: Path) -> None:
    store = CheckpointStore(folder=locate(tmp_path))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        best_checkpoint(store, [])
    for name in ("epoch_0001", "epoch_0002", "epoch_0002_step_000005", "epoch_0003"):
        store.folder.child(name, "checkpoint.json").write_bytes(b"{}")
    assert best_checkpoint(store, [{"ap": 0.1}, {"ap": 0.3}, {"ap": 0.2}]) == "epoch_0002"
    assert best_checkpoint(store, [{"ap": 0.1}, {}, {}]) == "epoch_0001"
    assert best_checkpoint(store, [{}, {}, {}]) == "epoch_0003"


def test_records_are_json(config: RunConfig) -> None:
    leave_results(config)

    assert json.loads(locate(config.output).child("run.json").read_bytes())["config"]["name"] == "run"
