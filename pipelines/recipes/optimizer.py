"""Optimizer of a run, and its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparse_detr.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its parameter groups and its schedule. The defaults are the paper's."""

    lr: float = 2e-4
    """Learning rate of everything outside the backbone, at a global batch of 16."""
    backbone_lr: float = 2e-5
    """Learning rate of the backbone."""
    offsets_factor: float = 0.1
    """`lr` times this is the learning rate of sampling offsets and reference points."""
    weight_decay: float = 1e-4
    """On every parameter, norms and biases too, as the authors do."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    clip_norm: float = 0.1
    """Gradients are scaled down to this total norm; 0 leaves them alone."""
    schedule: Literal["step", "cosine"] = "step"
    """`step` drops the rate every `drop_epoch` epochs, as the authors' StepLR; `cosine` lets it fall to `final_factor`
    over the run."""
    drop_epoch: int = 40
    """Epochs before each drop of the step schedule: one drop in the paper's 50 epochs."""
    drop_factor: float = 0.1
    """The rate is multiplied by this at each drop."""
    final_factor: float = 0.01
    """Share of the rate that is left at the end of the cosine schedule."""
    warmup_steps: int = 0
    """Steps over which the rate rises linearly from 0; the paper has none."""
    scale_with_batch: bool = True
    """Multiply all rates by sqrt(global batch / 16), as the authors do."""
    freeze: tuple[str, ...] = ()
    """Parts of the model that keep their weights: names of modules or parameters such as `backbone` or
    `encoder.layers.0`; `*` stands for anything, as in `decoder.layers.*.self_attention`. No gradient, no weight decay;
    dropout in them goes on. `model.backbone.frozen_stages` freezes stages of the backbone beside it."""
    fused: bool = True
    """One kernel updates all parameters, and leaves an update that is not finite out by itself. Otherwise torch updates
    them in groups, and a GPU is waited for once a step, to find out whether the update is finite."""

    def __post_init__(self) -> None:
        for name in ("lr", "backbone_lr"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"optimizer.{name}: {value}; give a finite number above 0")
        for name in ("weight_decay", "clip_norm", "warmup_steps", "offsets_factor", "final_factor"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optimizer.{name}: {value}; give a finite number of at least 0")
        for value in self.betas:
            require(0 <= value < 1, f"optimizer.betas: {self.betas}; give two numbers in [0, 1)")
        require(
            self.schedule in ("step", "cosine"),
            f"optimizer.schedule: {self.schedule!r} is not known; choose step or cosine",
        )
        for name in self.freeze:
            require(bool(name.strip()), f"optimizer.freeze: {name!r} is no name; give a part such as backbone")
        require(self.drop_epoch >= 1, f"optimizer.drop_epoch: {self.drop_epoch}; give at least 1")
        require(0 < self.drop_factor <= 1, f"optimizer.drop_factor: {self.drop_factor}; give a number in (0, 1]")
