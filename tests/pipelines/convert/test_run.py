"""`sparse-detr convert`, from the command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pipelines.cli.main import main
from pipelines.convert.config import ConvertConfig
from pipelines.convert.run import convert
from sparse_detr import BackboneConfig, ModelConfig, SparseDetr
from sparse_detr.errors import ConfigError
from sparse_detr.weights.authors.convert import to_original
from sparse_detr.weights.model_folder import save_model

if TYPE_CHECKING:
    from sparse_detr.storage.location import Location

CONFIG = ModelConfig(
    num_classes=3,
    backbone=BackboneConfig(name="resnet18"),
    channels=32,
    heads=4,
    levels=3,
    points=2,
    encoder_layers=2,
    decoder_layers=2,
    feedforward_channels=32,
    queries=20,
    keep_ratio=0.3,
    scoring_mean="all",
)


@pytest.fixture(scope="module")
def model() -> SparseDetr:
    return SparseDetr(CONFIG).eval()


@pytest.fixture
def checkpoint(tmp_path: Path, model: SparseDetr) -> Path:
    """As the authors' training leaves it: state, arguments, optimizer."""
    state = to_original(model) | {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(7)}
    arguments = argparse.Namespace(rho=0.3, nheads=4, num_queries=20, dropout=0.1)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state, "args": arguments, "optimizer": optimizer, "epoch": 49}, path)
    return path


def run(*words: object) -> int:
    return main(["convert", *map(str, words)])


def same(first: SparseDetr, second: SparseDetr) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[key]) for key, value in first.state_dict().items())


def test_there_and_back(
    checkpoint: Path, tmp_path: Path, model: SparseDetr, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, tmp_path / "ours") == 0
    shown = capsys.readouterr().out
    found = SparseDetr.from_pretrained(tmp_path / "ours")
    assert found.config == CONFIG
    assert same(found, model)
    for text in ("backbone.name", "resnet18", "keep_ratio", "0.3", "scoring network", "decoder",
                 "num_batches_tracked", "eff_specific_head: True", str(tmp_path / "ours")):  # fmt: skip
        assert text in shown
    assert run(tmp_path / "ours", tmp_path / "back.pth") == 0
    assert "back.pth" in capsys.readouterr().out
    written = torch.load(tmp_path / "back.pth", weights_only=True)
    read = torch.load(checkpoint, weights_only=False)["model"]
    read.pop("backbone.0.body.bn1.num_batches_tracked")
    assert written["model"].keys() == read.keys()
    assert all(torch.equal(value, read[key]) for key, value in written["model"].items())
    assert run(tmp_path / "back.pth", tmp_path / "again") == 0
    assert SparseDetr.from_pretrained(tmp_path / "again").config == CONFIG


def test_what_is_counted(checkpoint: Path, tmp_path: Path, model: SparseDetr) -> None:
    result = convert(ConvertConfig(source=str(checkpoint), output=str(tmp_path / "ours")))
    assert sum(part.tensors for part in result.parts.values()) == len(model.state_dict())
    assert result.parts["decoder"].numbers == sum(v.numel() for v in model.decoder.state_dict().values())
    # Heads 0 and 1 once more in the decoder, 8 tensors each; that of the encoder in both.
    assert {name: part.aliases for name, part in result.parts.items()} == {
        "backbone": 0, "feature projection": 0, "scoring network": 0, "encoder": 16, "queries": 8, "decoder": 16,
    }  # fmt: skip


def test_options_reach_the_model(checkpoint: Path, tmp_path: Path) -> None:
    words = ("--keep-ratio", "0.5", "--hints.proposal-score", "class_agnostic", "--hints.queries", 9)
    assert run(checkpoint, tmp_path / "ours", *words) == 0
    assert SparseDetr.from_pretrained(tmp_path / "ours").config == replace(
        CONFIG, keep_ratio=0.5, proposal_score="class_agnostic", queries=9
    )


def test_what_is_there_stays(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "back.pth"
    assert run(checkpoint, ours) == run(ours, theirs) == 0
    before = {path: path.read_bytes() for path in (ours / "config.json", theirs)}
    assert run(checkpoint, ours, "--keep-ratio", 0.5) == 2
    assert run(ours, theirs) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert run(checkpoint, ours, "--keep-ratio", 0.5, "--existing", "overwrite") == 0
    assert SparseDetr.from_pretrained(ours).config.keep_ratio == 0.5
    assert run(ours, theirs, "--existing", "overwrite") == 0
    assert torch.load(theirs, weights_only=True)["args"]["rho"] == 0.5
    assert run(checkpoint, theirs, "--existing", "overwrite") == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    assert run(ours, ours, "--existing", "overwrite") == 2


def test_neither_the_source_nor_what_no_conversion_wrote_is_replaced(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tmp_path / "ours"
    assert run(checkpoint, ours) == 0
    before = {path: path.read_bytes() for path in ours.iterdir()}
    capsys.readouterr()
    assert run(ours, ours / "model.safetensors", "--existing", "overwrite") == 2
    assert "model.safetensors, which output would replace" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in ours.iterdir()} == before
    app = tmp_path / "app"
    app.mkdir()
    (app / "config.json").write_text("{}")
    assert run(checkpoint, app, "--existing", "overwrite") == 2
    assert "holds something that no finished conversion wrote" in " ".join(capsys.readouterr().err.split())
    assert [(path.name, path.read_text()) for path in app.iterdir()] == [("config.json", "{}")]
    source = ours / "config.json"
    source.write_bytes(checkpoint.read_bytes())
    assert run(source, ours, "--existing", "overwrite") == 2
    assert "config.json is what output would replace" in " ".join(capsys.readouterr().err.split())


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def test_user_errors_leave_nothing_behind(
    checkpoint: Path, tmp_path: Path, model: SparseDetr, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(message: str, *words: object) -> None:
        assert run(*words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()

    out = tmp_path / "out"
    torch.save({"model": to_original(model)}, tmp_path / "bare.pth")
    refused("keep_ratio: None; the checkpoint has a scoring network", tmp_path / "bare.pth", out)
    torch.save({"model": to_original(model), "args": Attack(tmp_path / "hacked")}, tmp_path / "attack.pth")
    refused("attack.pth: refused", tmp_path / "attack.pth", out)
    assert not (tmp_path / "hacked").exists()
    refused("does not exist", tmp_path / "absent.pth", out)
    refused("so it is sparse (args.rho: 0.3), give the number", checkpoint, out, "--keep-ratio", 1)
    refused("ignore_scoring_mean: True; it tells about models of ours", checkpoint, out, "--ignore-scoring-mean")
    (tmp_path / "other").mkdir()
    refused("not a model folder", tmp_path / "other", out)
    refused("http:// can be read", "http://example.org/a.pth", out)
    save_model(tmp_path / "valid", SparseDetr(replace(CONFIG, scoring_mean="valid")))
    refused("scoring_mean: 'valid'", tmp_path / "valid", out)
    refused("it tells about the authors' checkpoints", tmp_path / "valid", out, "--hints.heads", 4)
    refused(f"give the folder, {tmp_path / 'valid'}", tmp_path / "valid" / "model.safetensors", out)
    assert run(tmp_path / "valid", out, "--ignore-scoring-mean") == 0


def test_options_before_the_addresses_are_no_addresses(checkpoint: Path, tmp_path: Path) -> None:
    words = ("--existing", "overwrite", "--source", checkpoint, "--output", tmp_path / "ours")
    assert run(*words) == 0
    with pytest.raises(ConfigError, match="source: it is empty"):
        ConvertConfig(source="", output="x")
    with pytest.raises(ConfigError, match=r"keep_ratio: 7; give a number in \(0, 1\]"):
        ConvertConfig(source="x", output="x", keep_ratio=7)


def test_in_a_store(checkpoint: Path, store: Location, tmp_path: Path, model: SparseDetr) -> None:
    source = store.child("checkpoint.pth")
    source.write_bytes(checkpoint.read_bytes())
    assert run(source.uri, store.child("ours").uri) == 0
    assert same(SparseDetr.from_pretrained(store.child("ours").uri), model)
    assert run(source.uri, store.child("ours").uri) == 2
    assert run(store.child("ours").uri, store.child("back.pth").uri) == 0
    assert run(store.child("back.pth").uri, tmp_path / "again") == 0
    assert same(SparseDetr.from_pretrained(tmp_path / "again"), model)
