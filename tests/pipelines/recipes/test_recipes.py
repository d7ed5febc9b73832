from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.recipes.config import RunConfig
from pipelines.recipes.registry import RECIPES, get_recipe
from pipelines.train.engine.optimizer import build_optimizer
from sparse_detr import ImageBatch, ModelConfig, SparseDetr, Targets
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import ConfigError
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.losses.criterion import Criterion
from sparse_detr.weights.model_folder import save_model


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds_its_model_and_survives_a_dict(name: str) -> None:
    config = get_recipe(name)
    with torch.device("meta"):  # shapes without numbers
        model = SparseDetr(config.model)

    assert model.config == config.model
    assert (model.scoring_network is not None) == (config.model.keep_ratio < 1)
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.name == name


MEMBERS = sorted(RECIPES.keys() - {f"{b}_rho{p}" for b in ("r50", "swint") for p in (20, 30, 40, 50)})


def small(config: RunConfig) -> ModelConfig:
    """The recipe's structure with a narrow transformer; one recipe of each backbone keeps it, others a tiny one."""
    deep = config.model.encoder_layers > 6
    own = config.name in ("r50_rho10", "r101_rho30", "r18_rho30", "swint_rho10")
    return replace(
        config.model,
        backbone=config.model.backbone if own else get_recipe("tiny").model.backbone,
        num_classes=3,
        channels=32,
        heads=4,
        encoder_layers=12 if deep else 2,
        decoder_layers=2,
        feedforward_channels=32,
        queries=10,
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_every_recipe_trains_a_step_and_saves_and_loads_and_predicts(name: str, tmp_path: Path) -> None:
    config = get_recipe(name)
    torch.manual_seed(0)
    model = SparseDetr(small(config)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = ImageBatch.from_list([torch.randn(3, 64, 64), torch.randn(3, 48, 56)])
    targets = [
        Targets(labels=torch.tensor([0, 2]), boxes=torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]])),
        Targets(labels=torch.tensor([], dtype=torch.int64), boxes=torch.zeros(0, 4)),
    ]
    report = Criterion(config.loss)(model(batch), targets)
    report.total.backward()
    build_optimizer(model, config.optimizer, config.training.global_batch).step()
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert report.total.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert moved <= trained
    assert len(moved) > len(trained) / 2

    save_model(tmp_path / "model", model)
    loaded = SparseDetr.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        ours, theirs = (postprocess(one(batch), [(64, 64), (48, 56)], limit=5) for one in (model.eval(), loaded))
    for one, other in zip(ours, theirs, strict=True):
        assert one.boxes.shape == (5, 4)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_says_what_to_expect_and_how_to_run_it(name: str) -> None:
    text = RECIPES[name].__doc__ or ""

    assert f"sparse-detr train {name}" in text
    assert any(word in text for word in ("xpected", "easured", "No published number"))
    assert "Time:" in text
    assert "TODO" not in text


def test_the_papers_schedule() -> None:
    config = get_recipe("r50_rho10")

    assert (config.optimizer.lr, config.optimizer.backbone_lr, config.optimizer.weight_decay) == (2e-4, 2e-5, 1e-4)
    assert (config.training.epochs, config.optimizer.drop_epoch, config.training.global_batch) == (50, 40, 16)
    assert (config.optimizer.clip_norm, config.optimizer.schedule) == (0.1, "step")
    assert [get_recipe(f"r50_rho{percent}").model.keep_ratio for percent in (10, 20, 30, 40, 50)] == [
        0.1, 0.2, 0.3, 0.4, 0.5,
    ]  # fmt: skip
    assert not get_recipe("r50_dense").model.sparse


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_no_recipe_ends_after_a_second_drop(name: str) -> None:
    config = get_recipe(name)

    if config.optimizer.schedule == "step":
        assert config.optimizer.drop_epoch < config.training.epochs <= 2 * config.optimizer.drop_epoch


def test_every_published_row_is_a_recipe() -> None:
    for backbone, name in (("r50", "resnet50"), ("swint", "swin_tiny")):
        rows = [f"{backbone}_{kind}" for kind in ("deformable", "dense", *(f"rho{p}" for p in (10, 20, 30, 40, 50)))]
        for row in rows:
            config = get_recipe(row)
            assert config.model.backbone.name == name
            assert (config.training.epochs, config.training.global_batch) == (50, 16)
            assert "(published)" in (RECIPES[row].__doc__ or "")
    assert get_recipe("swint_rho10").model.backbone.drop_path == 0.2


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'r50_rho1' does not exist; did you mean r50_rho10"):
        get_recipe("r50_rho1")
    with pytest.raises(ConfigError, match="choose one of tiny, "):
        get_recipe("yolo")
