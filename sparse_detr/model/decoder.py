"""The decoder: queries look at each other and at the memory; boxes are refined from layer to layer."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparse_detr.model.deformable_attention import Attended, DeformableAttention
from sparse_detr.model.feed_forward import FeedForward
from sparse_detr.model.full_attention import FullAttention
from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.proposals import Queries
from sparse_detr.model.reference_points import inverse_sigmoid, scale_to_levels
from sparse_detr.records import DecoderAttention, FeaturePyramid, Predictions


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network; post-norm."""

    def __init__(
        self,
        self_attention: nn.MultiheadAttention,
        cross_attention: DeformableAttention | FullAttention,
        feedforward: FeedForward,
        channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = nn.LayerNorm(channels)
        self.cross_attention = cross_attention
        self.cross_attention_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.feedforward = feedforward

    def forward(
        self,
        content: Float[Tensor, "B Q C"],
        position: Float[Tensor, "B Q C"],
        references: Float[Tensor, "B Q L size"],
        memory: Float[Tensor, "B T C"],
        pyramid: FeaturePyramid,
        with_samples: bool = False,
    ) -> tuple[Float[Tensor, "B Q C"], Attended]:
        """The next content, and, where asked for, where the cross-attention looked."""
        placed = content + position
        mixed, _ = self.self_attention(placed, placed, content, need_weights=False)
        content = self.self_attention_norm(content + self.dropout(mixed))
        attended: Attended = self.cross_attention(content + position, references, memory, pyramid, with_samples)
        content = self.cross_attention_norm(content + self.dropout(attended.output))
        return self.feedforward(content), attended


class DecoderOutput(NamedTuple):
    """Predictions of the decoder layers, and their attention where it was asked for."""

    predictions: tuple[Predictions, ...]
    """Of the last layer; of all layers, in order, where auxiliary output is asked for."""
    attention: DecoderAttention | None
    """The decoder attention map's raw material, where asked for and sampled; without gradient."""


class Decoder(nn.Module):
    """D layers with a head each, or with one head for all.

    With `refine`, a layer's boxes are the references of the next (Deformable DETR, appendix A.4); otherwise all layers
    start from those of the queries. `norm` comes before the heads.
    """

    def __init__(self, layers: list[DecoderLayer], heads: list[DetectionHead], norm: nn.Module, refine: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(heads)
        self.norm = norm
        self.refine = refine

    def forward(
        self, queries: Queries, memory: Float[Tensor, "B T C"], pyramid: FeaturePyramid, with_auxiliary: bool
    ) -> DecoderOutput:
        """Decode `queries`."""
        content, references = queries.content, queries.references
        predictions: list[Predictions] = []
        attention: list[Attended] = []
        for index, layer in enumerate(self.layers):
            scaled = scale_to_levels(references, pyramid.valid_ratios)
            content, attended = layer(content, queries.position, scaled, memory, pyramid, with_auxiliary)
            if with_auxiliary:
                attention.append(attended)
            last = index == len(self.layers) - 1
            if not (last or with_auxiliary or self.refine):
                continue
            head = cast(DetectionHead, self.heads[min(index, len(self.heads) - 1)])
            normed, start = self.norm(content), inverse_sigmoid(references)
            if last or with_auxiliary:
                predictions.append(head(normed, start))
            if self.refine and not last:
                # Each layer learns a step from the box before it: no gradient through the steps before.
                references = (predictions[-1].boxes if with_auxiliary else head.boxes(normed, start)).detach()
        return DecoderOutput(tuple(predictions), _stack(attention))


def _stack(attention: list[Attended]) -> DecoderAttention | None:
    locations = [layer.locations.detach() for layer in attention if layer.locations is not None]
    weights = [layer.weights.detach() for layer in attention if layer.weights is not None]
    if not locations:
        return None
    return DecoderAttention(locations=torch.stack(locations, dim=1), weights=torch.stack(weights, dim=1))
