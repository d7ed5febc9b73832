from __future__ import annotations

import pytest
import torch

from sparse_detr.losses.box_regression import box_losses
from sparse_detr.losses.matcher import Matching


def matching_of(rows, rows_per_set):
    images, predictions, objects = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).T
    return Matching(images=images, predictions=predictions, objects=objects, rows_per_set=rows_per_set)


def test_by_hand():
    # Prediction 1 is the object itself; prediction 2 is the unit square's left half beside its right half:
    # no overlap, hull = union, so GIoU is 0 and L1 is |0.25 - 0.75|.
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.4, 0.4, 0.2, 0.2], [0.25, 0.5, 0.5, 1.0]]])
    targets = torch.tensor([[0.4, 0.4, 0.2, 0.2], [0.75, 0.5, 0.5, 1.0]])
    matching = matching_of([[0, 1, 0], [0, 2, 1]], (1, 1))
    distance, giou = box_losses(boxes, matching, targets)
    assert distance.tolist() == pytest.approx([0.0, 0.5], abs=1e-6)
    assert giou.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_boxes_apart_are_pulled_together():
    boxes = torch.tensor([[[0.2, 0.5, 0.1, 0.1]]], requires_grad=True)
    _, giou = box_losses(boxes, matching_of([[0, 0, 0]], (1,)), torch.tensor([[0.8, 0.5, 0.1, 0.1]]))
    assert giou.item() == pytest.approx(1 + 0.5 / 0.7, abs=1e-5)  # hull 0.7 x 0.1, of which 0.5 x 0.1 is empty
    giou.sum().backward()
    assert boxes.grad[0, 0, 0] < 0  # descending moves the box to the right


def test_without_objects_zero_and_in_the_graph():
    boxes = torch.rand((2, 3, 4), requires_grad=True)
    distance, giou = box_losses(boxes, matching_of([], (0, 0)), torch.empty((0, 4)))
    assert distance.tolist() == giou.tolist() == [0, 0]
    (distance.sum() + giou.sum()).backward()
    assert torch.equal(boxes.grad, torch.zeros_like(boxes))
