"""An exponential moving average of the weights: what a short training evaluates and saves."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """A second copy of `model` whose weights follow the trained ones.

    The decay rises with the steps, min(decay, (1 + n) / (10 + n)), so that the random start is forgotten quickly.

    Not `torch.optim.swa_utils.AveragedModel`: torch 2.13 copies its count to the device in every update, which waits
    for all that the device has to do, once a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights that `model` has now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
