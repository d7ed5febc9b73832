"""Loss of the scoring network: its label are the tokens that the decoder looks at most (paper section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor


@torch.no_grad()
def dam_target(
    dam: Float[Tensor, "B T"], padding: Bool[Tensor, "B T"], counts: Int[Tensor, " B"], keep: int
) -> Float[Tensor, "B T"]:
    """1 at the `counts[b]` tokens of image b that the decoder looks at most, else 0 (paper section 3.2).

    Tokens of padding rank below all others. `keep` is K, the largest of the counts (known without asking the device).
    """
    # Below the least of all, so that padding is chosen only where an image has fewer tokens than K.
    ranked = dam.where(~padding, dam.min() - 1)
    best = ranked.topk(keep, dim=1).indices
    chosen = torch.arange(keep, device=dam.device) < counts[:, None]
    return torch.zeros_like(dam).scatter_(1, best, chosen.to(dam.dtype))


def token_scoring_loss(saliency: Float[Tensor, "B T"], target: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of every token's saliency logit, averaged over tokens and images (paper section 3.2).

    Tokens of padding count too, with target 0, as in the authors' code: their saliency is the batch's smallest
    one, which the gradient reaches.
    """
    return F.binary_cross_entropy_with_logits(saliency, target)
