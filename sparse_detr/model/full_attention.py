"""Attention from every query to every token: DETR's (Carion et al., 2020), whose cost grows with the square of T."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from sparse_detr.model.deformable_attention import Attended
from sparse_detr.records import FeaturePyramid


class FullAttention(nn.Module):
    """Multi-head attention in the place of deformable attention: references play no part, padding is masked."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout=dropout, batch_first=True)

    def forward(
        self,
        queries: Float[Tensor, "B Q C"],
        references: Float[Tensor, "B Q L size"],
        memory: Float[Tensor, "B T C"],
        pyramid: FeaturePyramid,
        with_samples: bool = False,
    ) -> Attended:
        """Look at all of `memory`; keys carry their position, values do not. There are no samples to tell of."""
        output, _ = self.attention(
            queries, memory + pyramid.position, memory, key_padding_mask=pyramid.padding, need_weights=False
        )
        return Attended(output, None, None)
