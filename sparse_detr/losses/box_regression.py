"""L1 and GIoU losses of matched boxes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_detr.boxes import cxcywh_to_xyxy, paired_giou
from sparse_detr.losses.matcher import Matching


def box_losses(
    boxes: Float[Tensor, "B S 4"], matching: Matching, target_boxes: Float[Tensor, "N 4"]
) -> tuple[Float[Tensor, " sets"], Float[Tensor, " sets"]]:
    """Sums of the L1 distance and of 1 - GIoU over matched boxes, for each set; divide by the number of boxes.

    Boxes are cxcywh, relative. Without any object both are 0 and still part of the graph.

    Args:
        boxes: all sets side by side on axis S.
        target_boxes: the objects of all images, one image after the other.
    """
    found = boxes[matching.images, matching.predictions]
    wanted = target_boxes[matching.objects]
    distance = (found - wanted).abs().sum(-1)
    giou_loss = 1 - paired_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    return _sum_by_set(distance, matching), _sum_by_set(giou_loss, matching)


def _sum_by_set(values: Tensor, matching: Matching) -> Tensor:
    return torch.stack([part.sum() for part in values.split_with_sizes(matching.rows_per_set)])
