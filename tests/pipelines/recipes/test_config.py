from __future__ import annotations

import json
import math
from typing import Any

import pytest

from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.recipes.data import DataConfig
from pipelines.recipes.optimizer import OptimizerConfig
from pipelines.recipes.override import field_values, override
from pipelines.recipes.registry import get_recipe
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import ConfigError
from sparse_detr.model.config import ModelConfig

NUMBERS = field_values(to_dict(RunConfig()))


def test_a_config_survives_dict_and_json() -> None:
    config = override(get_recipe("tiny"), {"training.init_model": "s3://bucket/model", "data.train_limit": 7})

    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_override_changes_only_what_it_names() -> None:
    before = RunConfig()
    after = override(before, {"optimizer.lr": 1e-4, "model.keep_ratio": 0.3, "data.augment.short_sides": [64, 96]})

    assert (after.optimizer.lr, after.model.keep_ratio, after.data.augment.short_sides) == (1e-4, 0.3, (64, 96))
    assert override(after, {"optimizer.lr": before.optimizer.lr, "model.keep_ratio": before.model.keep_ratio,
                            "data.augment.short_sides": list(before.data.augment.short_sides)}) == before  # fmt: skip


def test_override_takes_whole_configs_and_checks_only_the_outcome() -> None:
    # Each of these alone would be refused: learned queries need a dense encoder without refinement.
    changes = {"model.query_source": "learned", "model.keep_ratio": 1.0, "model.box_refinement": False,
               "model.encoder_auxiliary_loss": False}  # fmt: skip
    config = override(RunConfig(), changes)

    assert config.model.query_source == "learned"
    assert override(RunConfig(), {"model": config.model}).model == config.model


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", [name for name, value in NUMBERS.items() if isinstance(value, float)])
def test_every_number_is_finite(name: str, number: float) -> None:
    with pytest.raises(ConfigError, match=f"{name.rpartition('.')[2]}: {number}"):
        override(RunConfig(), {name: number})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimiser.lr": 1.0}, ("optimiser.lr", "no such field", "optimizer.lr")),
        ({"optimizer.learning": 1.0}, ("optimizer.learning", "no such field")),
        ({"keep_ratio": 0.2}, ("keep_ratio", "did you mean model.keep_ratio")),
        ({"optimizer.lr.x": 1.0}, ("optimizer.lr.x", "no such field")),
        ({"optimizer.lr": "fast"}, ("optimizer.lr", "fast")),
        ({"training.epochs": 2.5}, ("training.epochs", "2.5")),
        ({"model.keep_ratio": 0.0}, ("keep_ratio", "0.0", "(0, 1]")),
        ({"model.heads": 7}, ("heads", "7", "divisor")),
        ({"optimizer.schedule": "linear"}, ("schedule", "linear", "cosine")),
    ],
)
def test_override_names_what_is_wrong(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        override(RunConfig(), changes)

    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OptimizerConfig(lr=0.0), ("optimizer.lr", "0.0")),
        (lambda: OptimizerConfig(clip_norm=-1.0), ("optimizer.clip_norm", "-1.0")),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), ("optimizer.betas", "1.0")),
        (lambda: OptimizerConfig(drop_factor=0.0), ("optimizer.drop_factor", "0.0")),
        (lambda: TrainingConfig(epochs=0), ("training.epochs", "0")),
        (lambda: TrainingConfig(global_batch=16, workers=3), ("training.global_batch", "16", "3")),
        (lambda: TrainingConfig(ema_decay=1.0), ("training.ema_decay", "1.0")),
        (lambda: TrainingConfig(precision="float16"), ("training.precision", "float16", "bfloat16")),  # type: ignore[arg-type]
        (lambda: TrainingConfig(init_backbone="a", init_model="b"), ("training.init_backbone", "'a'", "'b'")),
        (lambda: DataConfig(short_side=800, max_side=700), ("data.max_side", "700", "800")),
        (lambda: DataConfig(cache="disk"), ("data.cache", "disk", "pixels")),  # type: ignore[arg-type]
        (lambda: DataConfig(train_limit=0), ("data.train_limit", "0")),
        (lambda: RunConfig(name=" "), ("name",)),
        (lambda: RunConfig(registered_model="it's"), ("registered_model", "it's")),
        (lambda: RunConfig(registered_model="models:/x"), ("registered_model", "models:/x")),
        (lambda: RunConfig(model_alias="v2"), ("model_alias", "v2")),
        (lambda: RunConfig(model_alias="Latest"), ("model_alias", "Latest")),
        (lambda: RunConfig(model_alias="best model"), ("model_alias", "best model")),
        (lambda: RunConfig(existing="append"), ("existing", "append", "overwrite")),  # type: ignore[arg-type]
        (lambda: RunConfig(model=ModelConfig(query_source="learned")), ("keep_ratio", "learned")),
    ],
)
def test_what_cannot_work_is_refused_by_name(make: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()

    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_field_values_are_flat_and_whole() -> None:
    values = field_values(to_dict(RunConfig()))

    assert values["model.backbone.name"] == "resnet50"
    assert values["optimizer.lr"] == 2e-4
    assert not any(isinstance(value, dict) for value in values.values())
