from __future__ import annotations

import pytest

from pipelines.config import RunConfig
from pipelines.recipes import RECIPES, get_recipe
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import ConfigError
from sparse_detr.model.sparse_detr import SparseDetr


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds_its_model_and_survives_a_dict(name: str) -> None:
    config = get_recipe(name)
    model = SparseDetr(config.model)

    assert model.config == config.model
    assert (model.scoring_network is not None) == (config.model.keep_ratio < 1)
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.name == name


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


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'r50_rho1' does not exist; did you mean r50_rho10"):
        get_recipe("r50_rho1")
    with pytest.raises(ConfigError, match="choose one of tiny, "):
        get_recipe("yolo")
