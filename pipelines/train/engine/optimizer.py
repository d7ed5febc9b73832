"""AdamW with the authors' parameter groups, and learning rates as a function of the step.

The schedule has no state: `learning_rate_factor` gives the factor of any step, so that a restored run goes on
exactly where it stopped.
"""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from pipelines.recipes.optimizer import OptimizerConfig

OFFSET_NAMES = ("sampling_offsets", "reference_points")
"""Parameters whose names hold one of these learn at `lr * offsets_factor`, as in Deformable DETR."""


def parameter_groups(model: nn.Module, config: OptimizerConfig, global_batch: int) -> list[dict[str, object]]:
    """The trainable parameters in three groups: `backbone`, `offsets` and `rest`, each with its `base_lr`.

    Raises:
        ValueError: nothing is trainable (our own error, never the user's).
    """
    groups: dict[str, list[nn.Parameter]] = {"backbone": [], "offsets": [], "rest": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group_of(name)].append(parameter)
    if not any(groups.values()):
        raise ValueError("the model has no trainable parameter")
    scale = math.sqrt(global_batch / 16) if config.scale_with_batch else 1.0
    rates = {"backbone": config.backbone_lr, "offsets": config.lr * config.offsets_factor, "rest": config.lr}
    return [
        {"name": name, "params": parameters, "lr": rates[name] * scale, "base_lr": rates[name] * scale}
        for name, parameters in groups.items()
        if parameters
    ]


def _group_of(name: str) -> str:
    if name.startswith("backbone."):
        return "backbone"
    return "offsets" if any(part in name for part in OFFSET_NAMES) else "rest"


def build_optimizer(model: nn.Module, config: OptimizerConfig, global_batch: int) -> AdamW:
    """AdamW over `parameter_groups`; fused, it saves a loop over hundreds of small tensors, on a CPU too."""
    groups = parameter_groups(model, config, global_batch)
    return AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=config.fused)
