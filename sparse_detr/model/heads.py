"""Class and box heads."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sparse_detr.records import Predictions

_PRIOR = 0.01
"""Class probability at the start (focal loss, Lin et al., 2017)."""


class BoxHead(nn.Module):
    """Three layers from a token to four box logits, relative to where the token looks from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, channels)
        self.second = nn.Linear(channels, channels)
        self.last = nn.Linear(channels, 4)
        # The first boxes are the references themselves, so that matching begins from places that were looked at.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, tokens: Float[Tensor, "B N C"], reference_logits: Float[Tensor, "B N _"]
    ) -> Float[Tensor, "B N 4"]:
        """Boxes, cxcywh relative; references are the logits of (x, y) or of (cx, cy, w, h)."""
        delta: Tensor = self.last(self.second(self.first(tokens).relu()).relu())
        if reference_logits.shape[-1] == 2:
            reference_logits = torch.cat((reference_logits, torch.zeros_like(reference_logits)), dim=-1)
        return (delta + reference_logits).sigmoid()


class DetectionHead(nn.Module):
    """Class logits and box of every token."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classes = nn.Linear(channels, classes)
        self.boxes = BoxHead(channels)
        # 300 queries have a handful of objects: at probability 0.5 the background's loss would drown all else at first.
        nn.init.constant_(self.classes.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def first_class(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N 1"]:
        """The first class logit alone."""
        return functional.linear(tokens, self.classes.weight[:1], self.classes.bias[:1])

    def forward(self, tokens: Float[Tensor, "B N C"], reference_logits: Float[Tensor, "B N _"]) -> Predictions:
        """Both predictions."""
        return Predictions(logits=self.classes(tokens), boxes=self.boxes(tokens, reference_logits))
