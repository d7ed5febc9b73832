"""Model folders: back as they were, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from sparse_detr import BackboneConfig, Classes, ImageBatch, ModelConfig, SparseDetr
from sparse_detr.errors import CheckpointError
from sparse_detr.records import ImageSize
from sparse_detr.storage.location import Location
from sparse_detr.weights.model_folder import describe_model, save_model

if TYPE_CHECKING:
    from pipelines.services.s3_server import LocalS3

CONFIG = ModelConfig(
    num_classes=2,
    backbone=BackboneConfig(name="resnet_tiny", frozen_stages=1),
    channels=64,
    heads=2,
    points=1,
    encoder_layers=2,
    decoder_layers=1,
    feedforward_channels=32,
    queries=7,
    keep_ratio=0.25,
)
CLASSES = Classes(names=("kettle", "Ключ"), category_ids=(3, 90))


@pytest.fixture(scope="module")
def model() -> SparseDetr:
    torch.manual_seed(0)
    model = SparseDetr(CONFIG).eval()
    model.classes = CLASSES
    model.image_size = ImageSize(short_side=96, max_side=128)
    return model


@pytest.fixture
def folder(tmp_path: Path, model: SparseDetr) -> Path:
    save_model(tmp_path / "model", model)
    return tmp_path / "model"


def assert_same(ours: SparseDetr, theirs: SparseDetr) -> None:
    assert ours.config == theirs.config
    assert ours.classes == theirs.classes
    assert ours.image_size == theirs.image_size
    assert not ours.training
    batch = ImageBatch.from_list([torch.ones(3, 64, 64)])
    with torch.no_grad():
        assert torch.equal(ours(batch).boxes, theirs(batch).boxes)
        assert torch.equal(ours(batch).logits, theirs(batch).logits)


def test_round_trip(folder: Path, model: SparseDetr) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]
    assert_same(SparseDetr.from_pretrained(folder), model)
    assert_same(SparseDetr.from_pretrained(str(folder)), model)


def test_folders_of_earlier_versions_tell_no_image_size(folder: Path, model: SparseDetr) -> None:
    assert SparseDetr.from_pretrained(folder).image_size == model.image_size
    edit_config(lambda c: c.pop("image_size"))(folder)
    assert SparseDetr.from_pretrained(folder).image_size is None


def test_round_trip_through_s3(s3: LocalS3, model: SparseDetr) -> None:
    save_model("s3://tests/checkpoints/model", model)
    assert_same(SparseDetr.from_pretrained("s3://tests/checkpoints/model"), model)


def test_saving_replaces_the_model_that_was_there(folder: Path) -> None:
    other = SparseDetr(replace(CONFIG, queries=5)).eval()
    save_model(folder, other)
    assert_same(SparseDetr.from_pretrained(folder), other)


def test_a_save_that_breaks_off_leaves_no_model(
    folder: Path, model: SparseDetr, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Location.write_bytes

    def full(self: Location, data: bytes) -> None:
        if self.path.endswith("config.json"):
            raise OSError("disk full")
        write(self, data)

    monkeypatch.setattr(Location, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        save_model(folder, model)
    with pytest.raises(CheckpointError, match=r"manifest.json: missing, so the model was not written to its end"):
        SparseDetr.from_pretrained(folder)


def vouch(folder: Path) -> None:
    """A manifest that fits whatever lies there now."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    entries = {name: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for name, d in files.items()}
    (folder / "manifest.json").write_text(json.dumps(entries))


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))
        vouch(folder)

    return edit


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def plant_pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Attack(folder.parent / "hacked")))
    vouch(folder)


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def exchange_weights(folder: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    vouch(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("model.safetensors"), r"model\.safetensors: \d+ bytes that are not those of manifest"),
        (cut("config.json"), r"config\.json: \d+ bytes that are not"),
        (cut("manifest.json"), r"manifest\.json: not JSON"),
        (flip_a_byte, r"model\.safetensors: .*damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: missing"),
        (plant_pickle, r"model\.safetensors: not a safetensors file"),
        (exchange_weights, r"unknown keys: weight; missing keys: backbone\..* and \d+ more"),
        (edit_config(lambda c: c["model"].update(queries=9, channels=32)), r"misshapen: .* the model wants"),
        (edit_config(lambda c: c.update(format=3)), r"config\.json: format 3; this version reads formats 1 and 2"),
        (edit_config(lambda c: c["model"].pop("keep_ratio")), r"config\.json: keep_ratio: missing"),
        (edit_config(lambda c: c["model"].update(heads=3)), r"config\.json: heads: 3 does not divide"),
        (edit_config(lambda c: c["classes"].update(names=["a"])), r"config\.json: classes: 1 names but 2"),
        (edit_config(lambda c: c["image_size"].update(max_side=95)), r"config\.json: max_side: 95 is less than"),
        (edit_config(lambda c: c.pop("model")), r"config\.json: .*missing"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        SparseDetr.from_pretrained(folder)
    assert not (folder.parent / "hacked").exists()


@pytest.mark.parametrize("entry", [{}, "x", None, {"size": "12"}])
def test_a_manifest_that_says_nothing_of_the_weights_is_refused_without_reading_them(folder: Path, entry: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"model.safetensors": entry}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*fetch the model again"):
        describe_model(folder, SparseDetr)


@pytest.mark.parametrize("tensor", [{}, "x", {"shape": "wide"}])
def test_a_header_without_shapes_is_refused(folder: Path, tensor: Any) -> None:
    weights = folder / "model.safetensors"
    header = json.dumps({"backbone": tensor}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model.safetensors"] = {"size": weights.stat().st_size, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*damaged"):
        describe_model(folder, SparseDetr)


def test_what_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent, not a model folder"):
        SparseDetr.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"a file, not a model folder; .*from_original"):
        SparseDetr.from_pretrained(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"a folder without any file of a model, not a model folder; give"):
        SparseDetr.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not written to its end"):
        SparseDetr.from_pretrained(tmp_path)
