"""Weights of the losses; the defaults are the paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sparse_detr.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms and of the matching costs. Every copy of the detection losses shares them."""

    class_weight: float = 2.0
    """Weight of the sigmoid focal loss (`loss_ce`)."""
    box_weight: float = 5.0
    """Weight of the L1 distance of matched boxes (`loss_bbox`)."""
    giou_weight: float = 2.0
    """Weight of 1 - GIoU of matched boxes (`loss_giou`)."""
    token_scoring_weight: float = 1.0
    """Weight of the scoring network's loss (`loss_mask_prediction`)."""
    encoder_auxiliary_weight: float = 1.0
    """Multiplies the weights of the encoder auxiliary losses (`loss_*_enc_0`, `_1`, ...); 0 switches them off."""
    focal_alpha: float = 0.25
    """Share of the focal loss that goes to the positives; between 0 and 1."""
    focal_gamma: float = 2.0
    """Exponent by which the focal loss plays down what is easy (gamma); 0 is plain cross-entropy."""
    match_class_cost: float = 2.0
    """Weight of the class cost in the matching of predictions and objects."""
    match_box_cost: float = 5.0
    """Weight of the L1 distance in the matching."""
    match_giou_cost: float = 2.0
    """Weight of -GIoU in the matching."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            require(
                math.isfinite(value) and value >= 0, f"loss.{field.name}: {value}; give a finite number of at least 0"
            )
        require(self.focal_alpha <= 1, f"loss.focal_alpha: {self.focal_alpha}; give a number in [0, 1]")
        require(
            max(self.match_class_cost, self.match_box_cost, self.match_giou_cost) > 0,
            "loss.match_class_cost, match_box_cost and match_giou_cost: all are 0, which matches at random; "
            "give at least one of them a positive number",
        )
