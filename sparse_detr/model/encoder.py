"""The encoder, whose layers update only the kept tokens (Sparse DETR, equation 4 and figure 3)."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from sparse_detr.model.deformable_attention import DeformableAttention
from sparse_detr.model.feed_forward import FeedForward
from sparse_detr.model.full_attention import FullAttention
from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.reference_points import encoder_reference_points
from sparse_detr.model.token_selection import gather_tokens, scatter_tokens
from sparse_detr.records import FeaturePyramid, Predictions, TokenSelection


class EncoderLayer(nn.Module):
    """Attention from the kept tokens to all tokens, then a feed-forward network; post-norm."""

    def __init__(
        self, attention: DeformableAttention | FullAttention, feedforward: FeedForward, channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.feedforward = feedforward

    def forward(
        self,
        tokens: Float[Tensor, "B K C"],
        position: Float[Tensor, "B K C"],
        references: Float[Tensor, "B K L 2"],
        memory: Float[Tensor, "B T C"],
        pyramid: FeaturePyramid,
    ) -> Float[Tensor, "B K C"]:
        """The kept tokens, updated by what they see in `memory`."""
        attended = self.attention(tokens + position, references, memory, pyramid)
        tokens = self.attention_norm(tokens + self.dropout(attended.output))
        updated: Tensor = self.feedforward(tokens)
        return updated


class EncoderOutput(NamedTuple):
    """Memory of all tokens, and the predictions of the auxiliary heads where they were asked for."""

    memory: Float[Tensor, "B T C"]
    auxiliary: tuple[Predictions, ...]
    """Predictions of layers 0 .. E-2 on the kept tokens; empty unless asked for."""


class Encoder(nn.Module):
    """E layers. Tokens that are not kept stay projected backbone features, but are attended to.

    `heads` are the detection heads of the encoder auxiliary loss on all layers but the last (section 3.4).
    """

    def __init__(self, layers: list[EncoderLayer], heads: list[DetectionHead]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(heads)

    def forward(
        self,
        pyramid: FeaturePyramid,
        selection: TokenSelection | None,
        proposal_logits: Float[Tensor, "B T 4"],
        with_auxiliary: bool,
    ) -> EncoderOutput:
        """Update the selected tokens, all of them where `selection` is None."""
        memory = tokens = pyramid.tokens
        position, boxes = pyramid.position, proposal_logits
        references = encoder_reference_points(pyramid.shapes, pyramid.valid_ratios)
        if selection is not None:
            tokens, position, references, boxes = (
                gather_tokens(x, selection.kept) for x in (tokens, position, references, boxes)
            )
        auxiliary = []
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens, position, references, memory, pyramid)
            memory = tokens if selection is None else scatter_tokens(memory, tokens, selection)
            if with_auxiliary and index < len(self.heads):
                auxiliary.append(self.heads[index](tokens, boxes))
        return EncoderOutput(memory, tuple(auxiliary))
