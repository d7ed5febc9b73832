"""Hungarian matching of predictions and objects (DETR, Carion et al., 2020, section 3.1).

All sets of predictions (decoder layers, proposals, encoder layers) are side by side on one axis, so that the
costs of all of them are computed at once and reach the host in one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparse_detr.boxes import cxcywh_to_xyxy, paired_giou
from sparse_detr.errors import ConfigError, NotFiniteError
from sparse_detr.losses.config import LossConfig
from sparse_detr.records import Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Which prediction stands for which object; R rows, grouped by set of predictions, then by image."""

    images: Int[Tensor, " R"]
    """Index of the image."""
    predictions: Int[Tensor, " R"]
    """Index on the axis that holds all sets side by side."""
    objects: Int[Tensor, " R"]
    """Index among the objects of all images, one image after the other."""
    rows_per_set: tuple[int, ...]
    """Number of rows of each set."""


@torch.no_grad()
def matching_cost(
    logits: Float[Tensor, "B S classes"],
    boxes: Float[Tensor, "B S 4"],
    labels: Int[Tensor, "B N"],
    target_boxes: Float[Tensor, "B N 4"],
    config: LossConfig,
) -> Float[Tensor, "B N S"]:
    """Cost of giving object n to prediction s: class, L1 and GIoU (boxes cxcywh, relative).

    The class cost is the focal loss of a positive minus that of a negative at the object's class, with 1e-8
    inside the logarithms as the authors have it.
    """
    shape = (logits.shape[0], labels.shape[1], logits.shape[1])
    alpha, gamma = config.focal_alpha, config.focal_gamma
    p = logits.gather(2, labels[:, None].expand(shape[0], shape[2], shape[1])).transpose(1, 2).sigmoid()
    positive = alpha * (1 - p).pow(gamma) * -(p + 1e-8).log()
    negative = (1 - alpha) * p.pow(gamma) * -(1 - p + 1e-8).log()
    distance = torch.cdist(target_boxes, boxes, p=1)
    giou = paired_giou(
        cxcywh_to_xyxy(target_boxes)[:, :, None].expand(*shape, 4), cxcywh_to_xyxy(boxes)[:, None].expand(*shape, 4)
    )
    return (
        config.match_box_cost * distance
        + config.match_class_cost * (positive - negative)
        - config.match_giou_cost * giou
    )


@torch.no_grad()
def match(
    logits: Float[Tensor, "B S classes"],
    boxes: Float[Tensor, "B S 4"],
    targets: Sequence[Targets],
    set_sizes: Sequence[int],
    config: LossConfig,
    *,
    checked: bool = True,
) -> Matching:
    """Match every set of predictions with the objects of its image, each set on its own.

    `set_sizes` cuts the axis S into the sets. The assignment runs on the host, in scipy. Unless `checked`, numbers that
    are not finite are matched too, in some way.

    Raises:
        NotFiniteError: a logit or a box is NaN or infinite.
        ConfigError: an object's label is no class of the model.
    """
    labels = pad_sequence([t.labels for t in targets], batch_first=True)
    # The value only has to be a box with an area; padded columns are cut off before the assignment.
    target_boxes = pad_sequence([t.boxes.to(boxes.dtype) for t in targets], batch_first=True, padding_value=0.5)
    counts = [len(t.labels) for t in targets]
    cost = matching_cost(logits, boxes, labels.clamp(0, logits.shape[2] - 1), target_boxes, config)
    _check_values(logits, boxes, labels, finite=checked)
    host = cost.cpu().numpy()
    if not checked:
        host = np.nan_to_num(host)
    if not np.isfinite(host).all():
        raise NotFiniteError(
            "targets: a box is NaN or has no area, so its matching cost is not finite; drop such boxes"
        )
    rows, sizes = _assign(host, counts, set_sizes)
    images, predictions, objects = torch.from_numpy(rows).to(logits.device, non_blocking=True)
    return Matching(images=images, predictions=predictions, objects=objects, rows_per_set=sizes)


def _assign(cost: np.ndarray, counts: Sequence[int], set_sizes: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Rows (image, prediction, object) of all sets, and how many belong to each set."""
    first_object = np.cumsum([0, *counts])
    found: list[np.ndarray] = [np.empty((3, 0), dtype=np.int64)]
    rows_per_set = []
    start = 0
    for size in set_sizes:
        rows = 0
        for image, count in enumerate(counts):
            if count:
                objects, predictions = linear_sum_assignment(cost[image, :count, start : start + size])
                found.append(
                    np.stack((np.full_like(objects, image), predictions + start, objects + first_object[image]))
                )
                rows += len(objects)
        rows_per_set.append(rows)
        start += size
    return np.concatenate(found, axis=1), tuple(rows_per_set)


def _check_values(logits: Tensor, boxes: Tensor, labels: Tensor, *, finite: bool) -> None:
    # A sum is NaN or infinite where one of its values is, and costs one pass and one transfer.
    extremes = labels.aminmax() if labels.numel() else (labels.new_zeros(()), labels.new_zeros(()))
    sums = torch.stack([value.double() for value in (logits.sum(), boxes.sum(), *extremes)])
    logit_sum, box_sum, lowest, highest = sums.tolist()
    for name, value in (("logits", logit_sum), ("boxes", box_sum)):
        if finite and not np.isfinite(value):
            raise NotFiniteError(
                f"{name}: the model's predictions hold NaN or infinity; training has diverged or an input was not "
                "finite: lower the learning rate, or use fp32 or bf16 instead of fp16"
            )
    if lowest < 0 or highest >= logits.shape[2]:
        raise ConfigError(
            f"targets.labels: {int(lowest)} to {int(highest)}, but the model has classes 0 to {logits.shape[2] - 1}; "
            "set model.num_classes to the number of classes in the data"
        )
