"""Heads at the start of training, and boxes relative to references."""

from __future__ import annotations

import torch

from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.reference_points import inverse_sigmoid


def test_untrained_boxes_are_the_references_and_classes_are_rare() -> None:
    head = DetectionHead(32, 5)
    tokens = torch.randn(2, 7, 32)
    references = torch.rand(2, 7, 4) * 0.8 + 0.1
    predictions = head(tokens, inverse_sigmoid(references))
    torch.testing.assert_close(predictions.boxes, references)
    torch.testing.assert_close(head.classes.bias.sigmoid(), torch.full((5,), 0.01))


def test_point_references_move_the_centre_alone() -> None:
    head = DetectionHead(32, 5)
    with torch.no_grad():
        head.boxes.last.bias.copy_(torch.tensor([0.0, 0.0, -2.0, -2.0]))
    points = torch.rand(1, 3, 2) * 0.8 + 0.1
    boxes = head(torch.randn(1, 3, 32), inverse_sigmoid(points)).boxes
    torch.testing.assert_close(boxes[..., :2], points)
    torch.testing.assert_close(boxes[..., 2:], torch.full((1, 3, 2), -2.0).sigmoid())
