"""Puts the training loop of one rank together from a run's config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.batches import load_data
from pipelines.train.engine.hooks import TrainHooks
from pipelines.train.engine.initial_weights import initial_model
from pipelines.train.engine.loop import TrainLoop
from sparse_detr.losses.criterion import Criterion
from sparse_detr.records import Classes
from sparse_detr.storage.retry import patiently
from sparse_detr.weights.state import LoadReport


def with_classes(config: RunConfig, classes: Classes) -> RunConfig:
    """The same run with `model.num_classes` taken from the data."""
    return replace(config, model=replace(config.model, num_classes=len(classes)))


def build_loop(
    config: RunConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    hooks: TrainHooks | None = None,
    on_weights: Callable[[LoadReport], None] | None = None,
    restored: bool = False,
) -> TrainLoop:
    """Read the data and put the loop of one rank together; a store that is away is waited for.

    Args:
        on_weights: is told where the weights come from.
        restored: a checkpoint will replace all weights, so those to start from are not read: they may be gone by now.
    """
    data = patiently(lambda: load_data(config, rank=rank, world_size=world_size))
    config = with_classes(config, data.classes)
    start = replace(config, training=replace(config.training, init_model=None, init_backbone=None))
    model, weights = patiently(initial_model, start if restored else config, data.classes)
    if on_weights is not None:
        on_weights(weights)
    criterion = Criterion(config.loss)
    return TrainLoop(config, model, criterion, data, rank=rank, world_size=world_size, device=device, hooks=hooks)
