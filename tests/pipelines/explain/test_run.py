from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.cli import main as cli
from pipelines.explain.config import ExplainConfig
from pipelines.explain.run import Explanation, explain
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError, ImageError, OutputExistsError, StorageError
from sparse_detr.model.config import BackboneConfig, ModelConfig
from sparse_detr.records import Classes, Detections, ImageSize
from sparse_detr.storage.location import Location, locate
from sparse_detr.visualize import TokenReport
from sparse_detr.weights.model_folder import save_model

SPARSE = ModelConfig(num_classes=2, backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0),
                     channels=32, heads=4, levels=3, encoder_layers=1, decoder_layers=2, feedforward_channels=32,
                     queries=10, keep_ratio=0.3)  # fmt: skip
DENSE = replace(SPARSE, keep_ratio=1.0, encoder_auxiliary_loss=False)
FULL = replace(DENSE, attention="full", levels=1, query_source="learned", box_refinement=False, shared_heads=True)


def _saved(config: ModelConfig, folder: Path) -> str:
    torch.manual_seed(0)
    model = SparseDetr(config).eval()
    model.classes = Classes(names=("disc", "star"), category_ids=(1, 2))
    model.image_size = ImageSize(short_side=64, max_side=96)
    save_model(str(folder), model)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _saved(SPARSE, tmp_path_factory.mktemp("explain") / "model")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_the_command_writes_a_picture_and_shows_the_shares(
    model: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "why.png"
    arguments = ["explain", str(image), "--model", model, "--output", str(output), "--threshold", "0"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    # 64 x 96 pixels: 8 x 12 + 4 x 6 + 2 x 3 tokens; 0.3 of them, cut off, and one.
    for text in ("objects of 0 and more", "20", "38 of 126", "attention on kept tokens", "level 0", "level 2"):
        assert text in shown
    with Image.open(output) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    assert cli.main(arguments) == 2
    assert "why.png exists" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*arguments, "--existing", "overwrite"]) == 0


def test_a_level_without_attention_has_no_share() -> None:
    report = TokenReport(shapes=((2, 2), (1, 1)), kept=torch.tensor([0, 4]), shares=(0.25, 0.5, float("nan")))
    detections = Detections(scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4))
    found = Explanation(picture=np.zeros((1, 1, 3), np.uint8), report=report, detections=detections)
    assert list(found.summary(0.4).values()) == [
        0,
        "2 of 5",
        "0.25",
        "0.5  (1 of 4 kept)",
        "none at all  (1 of 1 kept)",
    ]


def test_keep_ratio_and_size_reach_the_model(model: str, image: Path, tmp_path: Path) -> None:
    config = ExplainConfig(image=str(image), model=model, output=str(tmp_path / "x.png"), keep_ratio=0.6,
                           short_side=32, max_side=48)  # fmt: skip
    found = explain(config)
    assert found.report.tokens == 4 * 6 + 2 * 3 + 1 * 2
    assert found.report.kept is not None
    assert len(found.report.kept) == int(32 * 0.6) + 1


@pytest.mark.parametrize(("config", "says"), [(DENSE, "Dense encoder"), (FULL, "Full attention")])
def test_models_without_a_scoring_network_show_what_there_is(
    config: ModelConfig, says: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _saved(config, tmp_path / "model")
    assert cli.main(["explain", str(image), "--model", folder, "--output", str(tmp_path / "x.png")]) == 0
    shown = capsys.readouterr()
    assert says in " ".join(shown.err.split())
    assert "all of" in shown.out
    assert (tmp_path / "x.png").exists()


def test_from_store_to_store(model: str, image: Path, store: Location) -> None:
    store.child("noise.png").write_bytes(image.read_bytes())
    store.child("model").copy_tree_from(Path(model))
    output = store.child("why.png")
    explain(ExplainConfig(image=store.child("noise.png").uri, model=store.child("model").uri, output=output.uri))
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": "{folder}/missing.jpg"}, StorageError, r"image: .*missing\.jpg is not there"),
        ({"image": "{folder}"}, StorageError, "is a folder; name one file"),
        ({"image": "{folder}/text.jpg"}, ImageError, r"text\.jpg: not an image"),
        ({"model": "{folder}/nothing"}, CheckpointError, "nothing"),
        ({"output": "{folder}/there.png"}, OutputExistsError, r"there\.png exists; .*overwrite"),
        (
            {"image": "{folder}/there.png", "output": "{folder}/there.png", "existing": "overwrite"},
            OutputExistsError,
            r"image: .*there\.png is what output would replace",
        ),
    ],
)
def test_user_errors_are_named(
    changes: dict[str, str], error: type[Exception], message: str, model: str, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_bytes(b"<html>404 Not Found</html>")
    (tmp_path / "there.png").write_bytes(b"precious")
    given = {"image": str(image), "model": model, "output": str(tmp_path / "x.png")}
    given |= {name: value.format(folder=tmp_path) for name, value in changes.items()}
    with pytest.raises(error, match=message):
        explain(ExplainConfig(**given))  # type: ignore[arg-type]
    assert (tmp_path / "there.png").read_bytes() == b"precious"
    assert not (tmp_path / "x.png").exists()


def test_a_ratio_that_a_dense_model_cannot_serve_is_refused(image: Path, tmp_path: Path) -> None:
    folder = _saved(DENSE, tmp_path / "model")
    config = ExplainConfig(image=str(image), model=folder, output=str(tmp_path / "x.png"), keep_ratio=0.5)
    with pytest.raises(ConfigError, match=r"keep_ratio: 0\.5"):
        explain(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [("image", ""), ("model", ""), ("output", "why.jpg"), ("threshold", 1.5), ("keep_ratio", 0.0), ("short_side", 0)],
)
def test_fields_that_cannot_work_are_refused(field: str, value: Any) -> None:
    given: dict[str, Any] = {"image": "i.jpg", "model": "m", field: value}
    with pytest.raises(ConfigError, match=field):
        ExplainConfig(**given)


def test_default_output_stands_in_the_working_folder() -> None:
    assert locate(ExplainConfig(image="i", model="m").output).uri.endswith("/explain.png")
