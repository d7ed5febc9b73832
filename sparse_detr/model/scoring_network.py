"""The scoring network: how salient every token is (Sparse DETR, section 3.2)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class ScoringNetwork(nn.Module):
    """Saliency of every token from its own feature and the mean over all tokens.

    It is trained to tell the tokens that the decoder attends to; detection losses do not pass through it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.embed = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(channels, half),
            nn.GELU(),
            nn.Linear(half, channels // 4),
            nn.GELU(),
            nn.Linear(channels // 4, 1),
        )

    def forward(self, tokens: Float[Tensor, "B T C"], padding: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Logits; padded tokens get the smallest of the whole batch, gradient included (authors' choice).

        The mean counts padded tokens too, so an image's saliency depends a little on the batch it is in.
        """
        local, context = self.embed(tokens).chunk(2, dim=-1)
        context = context.mean(1, keepdim=True).expand_as(local)
        logits: Tensor = self.score(torch.cat((local, context), dim=-1)).squeeze(-1)
        return torch.where(padding, logits.min(), logits)
