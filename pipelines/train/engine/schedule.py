"""Learning rate of every step: warm-up, then drops or half a cosine."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from pipelines.recipes.optimizer import OptimizerConfig


def learning_rate_factor(config: OptimizerConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Factor on the base rates at `step`, counted from 0 over the whole run."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "step":
        drops = step // (config.drop_epoch * steps_per_epoch)
        return float(config.drop_factor**drops)
    length = max(1, steps_per_epoch * epochs - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / length)
    return config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Give every group its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
