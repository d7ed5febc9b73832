"""Tokens by objectness: the paper's other criterion (Sparse DETR, section 3.2, "objectness score")."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.scoring_network import TokenScores, lowest_of_image
from sparse_detr.records import Predictions


class ObjectnessHead(nn.Module):
    """A detection head on the backbone's tokens; a token is as salient as its best class.

    It is trained with the set loss of all other heads, so detection losses reach the tokens through it.
    """

    def __init__(self, head: DetectionHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        tokens: Float[Tensor, "B T C"],
        padding: Bool[Tensor, "B T"],
        proposal_logits: Float[Tensor, "B T 4"],
        with_predictions: bool,
    ) -> TokenScores:
        """Score `tokens`; with predictions, also detect objects at each of them, relative to its proposal."""
        logits = self.head.classes(tokens)
        best = logits.amax(-1)
        saliency = torch.where(padding, lowest_of_image(best, padding), best)
        if not with_predictions:
            return TokenScores(saliency, None)
        return TokenScores(saliency, Predictions(logits=logits, boxes=self.head.boxes(tokens, proposal_logits)))
