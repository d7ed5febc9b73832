"""Checkpoints come back equal, and damaged, mixed, foreign or dangerous ones are refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.train.engine import checkpoint
from pipelines.train.engine.checkpoint import (
    SEAL,
    TRAINER,
    Snapshot,
    TrainingState,
    load_checkpoint,
    load_training_state,
    on_host,
    save_checkpoint,
)
from pipelines.train.engine.loss_meter import SeenLosses
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError
from sparse_detr.model.config import BackboneConfig, ModelConfig
from sparse_detr.records import Classes
from sparse_detr.storage.location import Location

OWNED = Path("model/manifest.json")
CONFIG = ModelConfig(
    num_classes=2,
    backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0),
    channels=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_channels=16,
    queries=5,
)


def small_model(seed: int = 0) -> SparseDetr:
    torch.manual_seed(seed)
    model = SparseDetr(CONFIG)
    model.classes = Classes(names=("a", "b"), category_ids=(3, 7))
    return model


def train(model: SparseDetr) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 1e-3}])
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SparseDetr, TrainingState]:
    folder = tmp_path_factory.mktemp("checkpoint") / "epoch"
    model = small_model()
    state = TrainingState(
        epoch=3,
        step=120,
        optimizer=train(model).state_dict(),
        weights={key: value + 1 for key, value in model.state_dict().items()},
        average_updates=119,
        history=[{"loss": 1.5, "ap": np.float64(0.25)}, {"loss": float("inf")}],  # type: ignore[dict-item]
        epoch_step=7,
        seen=SeenLosses(names=("loss", "corr"), sums=torch.rand(2, 2, 2)),
        train_seconds=1.25,
    )
    save_checkpoint(folder, model, state)
    return folder, model, state


@pytest.fixture
def folder(written: tuple[Path, SparseDetr, TrainingState], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "copy"))


def seal(folder: Path) -> None:
    """Write the hashes that fit, as someone who wants to deceive would."""
    files = {}
    for name in (TRAINER, str(OWNED)):
        data = (folder / name).read_bytes()
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / SEAL).write_text(json.dumps({"format": 2, "files": files}))


def test_round_trip(written: tuple[Path, SparseDetr, TrainingState]) -> None:
    folder, model, state = written
    again, loaded = load_checkpoint(folder)
    assert again.config == model.config
    assert again.classes == model.classes
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert (loaded.epoch, loaded.step, loaded.average_updates) == (3, 120, 119)
    assert loaded.history == [{"loss": 1.5, "ap": 0.25}, {"loss": float("inf")}]
    assert loaded.weights is not None
    torch.testing.assert_close(dict(loaded.weights), dict(state.weights or {}), rtol=0, atol=0)
    assert (loaded.epoch_step, loaded.train_seconds) == (7, 1.25)
    assert loaded.seen is not None
    assert state.seen is not None
    assert loaded.seen.names == state.seen.names
    torch.testing.assert_close(loaded.seen.sums, state.seen.sums, rtol=0, atol=0)
    fresh = torch.optim.AdamW([{"params": list(again.parameters())}])
    fresh.load_state_dict(dict(loaded.optimizer))
    assert fresh.param_groups[0]["lr"] == 1e-3
    torch.testing.assert_close(fresh.state_dict()["state"], state.optimizer["state"], rtol=0, atol=0)


def test_the_model_loads_alone(written: tuple[Path, SparseDetr, TrainingState]) -> None:
    assert SparseDetr.from_pretrained(written[0] / "model").config == CONFIG


def test_a_later_checkpoint_replaces_an_earlier_one(folder: Path) -> None:
    save_checkpoint(folder, small_model(1), TrainingState(epoch=4, step=160, optimizer={}))
    model, state = load_checkpoint(folder)
    assert (state.epoch, state.weights, list(state.history)) == (4, None, [])
    torch.testing.assert_close(dict(model.state_dict()), dict(small_model(1).state_dict()), rtol=0, atol=0)


def test_through_a_store(folder: Path, store: Location, tmp_path: Path) -> None:
    store.copy_tree_from(folder, last=SEAL)
    store.download_to(tmp_path / "back")
    assert load_checkpoint(tmp_path / "back")[1].step == 120


def test_an_interrupted_save_leaves_no_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, small_model(), TrainingState(epoch=4, step=1, optimizer={}))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", [TRAINER, SEAL, "model/manifest.json", "model/config.json", "model/model.safetensors"])
@pytest.mark.parametrize("left", [0.0, 0.5, None])
def test_files_that_are_cut_short_or_gone(folder: Path, name: str, left: float | None) -> None:
    if left is None:
        (folder / name).unlink()
    else:
        os.truncate(folder / name, int((folder / name).stat().st_size * left))
    with pytest.raises(CheckpointError, match=Path(name).name):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_training_state_cut_short_under_fitting_hashes(folder: Path, keep: int) -> None:
    data = (folder / TRAINER).read_bytes()
    (folder / TRAINER).write_bytes(data[:keep])
    seal(folder)
    with pytest.raises(CheckpointError, match=r"trainer\.pt"):
        load_checkpoint(folder)


def test_one_flipped_bit(folder: Path) -> None:
    data = bytearray((folder / TRAINER).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / TRAINER).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"trainer\.pt: not the file"):
        load_checkpoint(folder)


def test_the_model_of_another_checkpoint(folder: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other", small_model(1), TrainingState(epoch=1, step=1, optimizer={}))
    shutil.rmtree(folder / "model")
    shutil.move(tmp_path / "other" / "model", folder / "model")
    with pytest.raises(CheckpointError, match=r"model/manifest\.json: not the file"):
        load_checkpoint(folder)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [True, False])
def test_code_is_refused_and_not_run(folder: Path, tmp_path: Path, plain: bool) -> None:
    content = {"epoch": Bomb(tmp_path / "exploded")}
    if plain:
        (folder / TRAINER).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / TRAINER)
    seal(folder)
    with pytest.raises(CheckpointError, match=r"trainer\.pt") as caught:
        load_checkpoint(folder)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()
    torch.load(folder / TRAINER, weights_only=False) if not plain else pickle.loads((folder / TRAINER).read_bytes())
    assert (tmp_path / "exploded").exists()  # the bomb was live


@pytest.mark.parametrize("content", [{"epoch": 1}, [1, 2], {"state_dict": {}}, torch.zeros(2), {1: 2}])
def test_a_file_of_another_program(folder: Path, content: Any) -> None:
    torch.save(content, folder / TRAINER)
    seal(folder)
    with pytest.raises(CheckpointError, match=r"trainer\.pt: holds .*wanted"):
        load_training_state(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 3, "files": {}}', '{"format": 2, "files": []}', "\xff"])
def test_a_seal_that_is_none(folder: Path, text: str) -> None:
    (folder / SEAL).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        load_checkpoint(folder)


def test_a_snapshot_does_not_follow_the_training() -> None:
    model = small_model()
    optimizer = train(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    snapshot = Snapshot.of(model, TrainingState(epoch=1, step=1, optimizer=on_host(optimizer.state_dict())))
    optimizer.step()
    model.classes = None

    torch.testing.assert_close(dict(snapshot.model.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(dict(snapshot.state.optimizer["state"]), moments, rtol=0, atol=0)
    assert snapshot.model.classes == Classes(names=("a", "b"), category_ids=(3, 7))
    assert not snapshot.model.training


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: missing"):
        load_checkpoint(tmp_path / "nowhere")
