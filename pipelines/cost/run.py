"""Cost of a model for one image: counted by the formula, and measured."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.cost.config import CostConfig
from pipelines.recipes.registry import RECIPES, get_recipe
from sparse_detr.cost.latency import Latency, measure_latency
from sparse_detr.cost.model import ModelCost, model_cost
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError
from sparse_detr.model.config import ModelConfig
from sparse_detr.records import COCO_IMAGE_SIZE, ImageSize
from sparse_detr.storage.location import locate


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """Cost of a model, counted and measured."""

    cost: ModelCost
    latency: Latency | None
    """None where only counted."""
    trained: bool
    """Whether it was measured with a trained model's weights; otherwise with random ones."""


def run_cost(config: CostConfig) -> CostReport:
    """Count, and measure unless told otherwise.

    Raises:
        ConfigError: `recipe` is neither a recipe nor a model folder, or a field cannot work with the model.
        CheckpointError, StorageError: the folder does not hold a complete model, or cannot be reached.
    """
    model_config, size, model = _find(config.recipe)
    height = size.short_side if config.height is None else config.height
    width = min(size.short_side * 4 // 3, size.max_side) if config.width is None else config.width
    cost = model_cost(model_config, height, width, config.keep_ratio)
    latency = None
    if config.latency:
        runnable = SparseDetr(model_config) if model is None else model
        latency = measure_latency(runnable, height, width, config, config.keep_ratio)
    return CostReport(cost=cost, latency=latency, trained=model is not None)


def _find(source: str) -> tuple[ModelConfig, ImageSize, SparseDetr | None]:
    """Configuration and evaluation size, and the model itself where `source` is a folder."""
    if source in RECIPES:
        recipe = get_recipe(source)
        return recipe.model, recipe.data.image_size, None
    try:
        model = SparseDetr.from_pretrained(source)
    except CheckpointError as error:
        if "/" in source or locate(source).exists():
            raise
        raise ConfigError(_no_recipe(source)) from error
    return model.config, model.image_size or COCO_IMAGE_SIZE, model


def _no_recipe(name: str) -> str:
    try:
        get_recipe(name)
    except ConfigError as error:
        return f"{error} A model folder may stand in its place."
    raise AssertionError(f"{name} is a recipe")
