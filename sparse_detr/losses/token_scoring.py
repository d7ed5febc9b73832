"""The scoring network's loss: saliency must find the tokens that the decoder looks at."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor


def token_scoring_loss(saliency: Float[Tensor, "B T"], target: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of every token's saliency logit, averaged over tokens and images (paper section 3.2).

    Tokens of padding count too, with target 0, as in the authors' code: their saliency is the batch's smallest
    one, which the gradient reaches.
    """
    return F.binary_cross_entropy_with_logits(saliency, target)
