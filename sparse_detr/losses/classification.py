"""Sigmoid focal loss (Lin et al., 2017) of sets of predictions."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.matcher import Matching


def focal_negative(logits: Float[Tensor, "*n"], config: LossConfig) -> Float[Tensor, "*n"]:
    """Loss of every logit as if its class were absent: (1 - alpha) p^gamma softplus(x)."""
    return (1 - config.focal_alpha) * logits.sigmoid().pow(config.focal_gamma) * F.softplus(logits)


def focal_positive(logits: Float[Tensor, "*n"], config: LossConfig) -> Float[Tensor, "*n"]:
    """Loss of every logit as if its class were present: alpha (1 - p)^gamma softplus(-x)."""
    return config.focal_alpha * (-logits).sigmoid().pow(config.focal_gamma) * F.softplus(-logits)


def classification_loss(
    logits: Float[Tensor, "B S classes"],
    matching: Matching,
    labels: Int[Tensor, " N"],
    set_sizes: tuple[int, ...],
    config: LossConfig,
) -> Float[Tensor, " sets"]:
    """Sum of the focal loss over images, predictions and classes, for each set; divide by the number of boxes.

    Only the few matched logits are positive, so every logit counts as negative first and the matched ones are
    put right after: no one-hot target of the size of the logits is built.

    Args:
        logits: all sets side by side on axis S.
        labels: classes of the objects of all images, one image after the other.
        set_sizes: cuts axis S into the sets.
    """
    background = focal_negative(logits, config).sum(dim=(0, 2)).split_with_sizes(set_sizes)
    matched = logits[matching.images, matching.predictions, labels[matching.objects]]
    change = (focal_positive(matched, config) - focal_negative(matched, config)).split_with_sizes(matching.rows_per_set)
    return torch.stack([b.sum() + c.sum() for b, c in zip(background, change, strict=True)])


@torch.no_grad()
def class_error(
    logits: Float[Tensor, "B S classes"], matching: Matching, labels: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Per cent of the first set's matched predictions whose best class is wrong; 100 where nothing is matched."""
    rows = matching.rows_per_set[0]
    best = logits[matching.images[:rows], matching.predictions[:rows]].argmax(-1)
    right = (best == labels[matching.objects[:rows]]).sum()
    return 100.0 - 100.0 * right / max(rows, 1)
