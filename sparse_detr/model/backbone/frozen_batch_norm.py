"""Batch norm whose statistics and affine numbers never change (DETR, Carion et al., 2020)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FrozenBatchNorm(nn.Module):
    """`y = x * s + (b - mean * s)` with `s = w / sqrt(var + 1e-5)`; all four are buffers."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    epsilon = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The normalised map."""
        scale = self.weight * (self.running_var + self.epsilon).rsqrt()
        shift = self.bias - self.running_mean * scale
        return features * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
