from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.recipes.paths import absolute
from pipelines.train.engine import build
from pipelines.train.engine.batches import load_data
from pipelines.train.engine.build import build_loop, with_classes
from pipelines.train.engine.initial_weights import describe_initial_model, initial_model
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError, StoreUnavailableError
from sparse_detr.records import Classes, ImageSize
from sparse_detr.weights.model_folder import save_model

CLASSES = Classes(names=("red", "white", "platelet"), category_ids=(1, 2, 3))


def test_relative_paths_become_absolute_and_uris_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = override(RunConfig(), {"data.train_images": "images", "data.val_images": "s3://bucket/val",
                                    "training.init_model": "start", "tracking_uri": "sqlite:///mlflow.db"})  # fmt: skip
    found = absolute(config)

    assert found.data.train_images == str(tmp_path / "images")
    assert found.data.val_images == "s3://bucket/val"
    assert found.data.train_annotations == ""
    assert found.training.init_model == str(tmp_path / "start")
    assert found.training.init_backbone is None
    assert found.output == str(tmp_path / "runs/train")
    assert found.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute(found) == found


def test_the_checksum_of_a_backbone_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for given, full in (
        ("r50.pth#sha256=01234567", f"{tmp_path}/r50.pth#sha256=01234567"),
        ("https://host/r50.pth#sha256=01234567", "https://host/r50.pth#sha256=01234567"),
    ):
        assert absolute(override(RunConfig(), {"training.init_backbone": given})).training.init_backbone == full


def test_the_classes_come_from_the_data(quick_run: RunConfig) -> None:
    loop = build_loop(override(quick_run, {"model.num_classes": 91}))

    assert loop.model.config.num_classes == 4
    assert loop.model.classes is not None
    assert loop.model.classes.names == ("circle", "square", "star", "triangle")
    assert with_classes(quick_run, CLASSES).model.num_classes == 3


def test_the_seed_decides_the_first_weights(quick_run: RunConfig) -> None:
    def weight(seed: int) -> torch.Tensor:
        config = with_classes(override(quick_run, {"training.seed": seed}), CLASSES)
        return initial_model(config, CLASSES)[0].feature_projection.state_dict()["projections.0.0.weight"]

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


def test_a_backbone_file_says_what_it_lacks(shared: Path) -> None:
    uri = str(shared / "data/backbones/resnet18_imagenet_stem_to_layer3.safetensors")
    from pipelines.recipes.registry import get_recipe

    config = override(get_recipe("bccd_r18"), {"training.init_backbone": uri})
    model, report = initial_model(config, CLASSES)
    plain = SparseDetr(config.model)

    assert describe_initial_model(config, CLASSES) == report
    assert report.source == uri
    assert any("layer3" in name for name in report.loaded)
    assert report.fresh
    assert all("layer4" in name for name in report.fresh)
    assert "layer4" in report.describe()
    assert not torch.equal(model.backbone.conv1.weight, plain.backbone.conv1.weight)


def test_a_start_from_a_model_names_what_is_fresh(quick_run: RunConfig, tmp_path: Path) -> None:
    dense = with_classes(override(quick_run, {"model.keep_ratio": 1.0}), CLASSES)
    given, _ = initial_model(dense, CLASSES)
    save_model(tmp_path / "model", given)
    sparse = override(dense, {"model.keep_ratio": 0.3, "training.init_model": str(tmp_path / "model")})
    model, report = initial_model(sparse, CLASSES)

    assert describe_initial_model(sparse, CLASSES) == report
    assert report.fresh
    assert all(name.startswith("scoring_network.") for name in report.fresh)
    assert set(report.loaded) == set(given.state_dict())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in given.state_dict().items())
    back = override(sparse, {"model.keep_ratio": 1.0})
    assert initial_model(back, CLASSES)[1].ignored == ()


def test_a_model_of_other_classes_is_refused(quick_run: RunConfig, tmp_path: Path) -> None:
    model, _ = initial_model(with_classes(quick_run, CLASSES), CLASSES)
    save_model(tmp_path / "model", model)

    start = override(quick_run, {"training.init_model": str(tmp_path / "model")})
    with pytest.raises(ConfigError, match=r"training\.init_model: .*'red'.*'circle'"):
        build_loop(start)
    others = Classes(names=("circle", "square", "star"), category_ids=(1, 2, 3))
    with pytest.raises(ConfigError, match=r"training\.init_model: .*'red'.*'circle'"):
        describe_initial_model(with_classes(start, others), others)


def test_what_a_checkpoint_replaces_is_not_read(quick_run: RunConfig, tmp_path: Path) -> None:
    loop = build_loop(quick_run)
    save_model(tmp_path / "start", loop.model)
    config = override(quick_run, {"training.init_model": str(tmp_path / "start"), "optimizer.freeze": ("backbone",)})
    first = build_loop(override(config, {"training.seed": 5}))
    first.save(tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "start")

    with pytest.raises(CheckpointError):
        build_loop(config)
    again = build_loop(config, restored=True)
    again.restore(tmp_path / "checkpoint")
    assert again.config.training.init_model is not None, "a checkpoint says where the run began"
    frozen = {name for name, each in first.model.named_parameters() if not each.requires_grad}
    assert frozen
    assert {name for name, each in again.model.named_parameters() if not each.requires_grad} == frozen
    found = again.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in first.model.state_dict().items())


def test_a_store_that_is_away_for_a_moment_delays_the_start(
    quick_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def away_at_first(work: Callable[..., Any]) -> Callable[..., Any]:
        def tried(*arguments: Any, **named: Any) -> Any:
            calls.append(work.__name__)
            if calls.count(work.__name__) == 1:
                raise StoreUnavailableError("s3://bucket: away")
            return work(*arguments, **named)

        return tried

    for each in (load_data, initial_model):
        monkeypatch.setattr(build, each.__name__, away_at_first(each))
    build_loop(quick_run)
    assert calls == ["load_data", "load_data", "initial_model", "initial_model"]


def test_a_description_reads_no_weights(quick_run: RunConfig, tmp_path: Path) -> None:
    config = with_classes(quick_run, CLASSES)
    save_model(tmp_path / "model", initial_model(config, CLASSES)[0])
    start = override(config, {"training.init_model": str(tmp_path / "model")})
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-64:] = bytes(64)
    weights.write_bytes(content)

    assert describe_initial_model(start, CLASSES).fresh == ()
    weights.write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match="cut short"):
        describe_initial_model(start, CLASSES)


def test_the_model_knows_the_size_of_its_evaluation(quick_run: RunConfig) -> None:
    config = with_classes(override(quick_run, {"data.short_side": 48, "data.max_side": 80}), CLASSES)
    assert initial_model(config, CLASSES)[0].image_size == ImageSize(short_side=48, max_side=80)
