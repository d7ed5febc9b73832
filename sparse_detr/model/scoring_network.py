"""The scoring network: saliency of every token (Sparse DETR, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparse_detr.records import Predictions


class TokenScores(NamedTuple):
    """Saliency of all tokens by a token criterion, with its predictions where it makes any."""

    saliency: Float[Tensor, "B T"]
    """Logits; a padded token has the smallest one of its image, or of the batch."""
    predictions: Predictions | None
    """Of a criterion that detects, where asked for."""


class ScoringNetwork(nn.Module):
    """Saliency of every token from its own feature and the mean over the tokens of its image.

    It is trained to tell the tokens that the decoder attends to; detection losses do not pass through it.
    `mean_over_all` counts padded tokens into the mean, and gives them the smallest logit of the whole batch, as the
    authors' weights want it. Otherwise padded tokens change no other token's saliency.
    """

    def __init__(self, channels: int, *, mean_over_all: bool = False) -> None:
        super().__init__()
        half = channels // 2
        self.mean_over_all = mean_over_all
        self.embed = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(channels, half),
            nn.GELU(),
            nn.Linear(half, channels // 4),
            nn.GELU(),
            nn.Linear(channels // 4, 1),
        )

    def forward(
        self,
        tokens: Float[Tensor, "B T C"],
        padding: Bool[Tensor, "B T"],
        proposal_logits: Float[Tensor, "B T 4"],
        with_predictions: bool,
    ) -> TokenScores:
        """Score `tokens`; it predicts no boxes, so the last two arguments change nothing."""
        # One half of the channels stays the token's own, the other becomes the mean over the image: without it a token
        # could not know whether it stands out.
        local, context = self.embed(tokens).chunk(2, dim=-1)
        if self.mean_over_all:
            context = context.mean(1, keepdim=True)
        else:
            image = (~padding)[..., None].to(context.dtype)
            context = (context * image).sum(1, keepdim=True) / image.sum(1, keepdim=True)
        logits: Tensor = self.score(torch.cat((local, context.expand_as(local)), dim=-1)).squeeze(-1)
        # A padded token ranks last, and its term of the loss reaches the least salient token alone.
        lowest = logits.min() if self.mean_over_all else lowest_of_image(logits, padding)
        return TokenScores(torch.where(padding, lowest, logits), None)


def lowest_of_image(logits: Float[Tensor, "B T"], padding: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    """The smallest logit among each image's own tokens."""
    return logits.masked_fill(padding, torch.inf).amin(1, keepdim=True)
