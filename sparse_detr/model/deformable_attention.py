"""The attention module around the deformable-attention op (Deformable DETR, section 4.1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import fused_deformable_attention
from sparse_detr.records import FeaturePyramid


class Attended(NamedTuple):
    """Output of the module, and where it looked."""

    output: Float[Tensor, "B Q C"]
    locations: Float[Tensor, "B Q M L P 2"] | None
    """Without gradient; None where not asked for, and where attention does not sample."""
    weights: Float[Tensor, "B Q M L P"] | None


class DeformableAttention(nn.Module):
    """Each query looks at P points of each level with each head, at offsets from its reference."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads look in M directions, point p at p + 1 pixels; even weights (the authors' start)."""
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = directions[:, None, None] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        queries: Float[Tensor, "B Q C"],
        references: Float[Tensor, "B Q L size"],
        memory: Float[Tensor, "B T C"],
        pyramid: FeaturePyramid,
        with_samples: bool = False,
    ) -> Attended:
        """Look from `references`, (x, y) or (cx, cy, w, h) relative to each level, at `memory`.

        `with_samples` also says where and how much, which the op itself computes inside.
        """
        batch, tokens, channels = memory.shape
        # Masked after the projection, so that padding contributes nothing, not even the bias.
        value = self.value(memory).masked_fill(pyramid.padding[..., None], 0.0)
        value = value.view(batch, tokens, self.heads, channels // self.heads)
        axes = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(queries).unflatten(-1, (*axes, 2))
        logits = self.attention_weights(queries).unflatten(-1, axes)
        output = self.output(fused_deformable_attention(value, pyramid.shapes, references, offsets, logits))
        if not with_samples:
            return Attended(output, None, None)
        with torch.no_grad():
            locations = reference.locate(references, offsets, pyramid.shapes)
            weights = logits.flatten(3).softmax(-1).view_as(logits)
        return Attended(output, locations, weights)
