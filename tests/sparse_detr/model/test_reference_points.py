"""Reference points by hand."""

from __future__ import annotations

import torch

from sparse_detr.model.reference_points import encoder_reference_points, inverse_sigmoid, scale_to_levels


def test_tokens_look_from_their_own_centre() -> None:
    points = encoder_reference_points(((2, 2), (1, 1)), torch.ones(1, 2, 2))
    expected = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75], [0.5, 0.5]])
    torch.testing.assert_close(points[0, :, 0], expected)
    torch.testing.assert_close(points[0, :, 1], expected)


def test_references_are_relative_to_the_padded_map_of_each_level() -> None:
    ratios = torch.tensor([[[0.5, 1.0], [1.0, 1.0]]])
    points = encoder_reference_points(((1, 2), (1, 1)), ratios)
    # The first cell's centre is at half of the valid width, which is a quarter of level 0 but half of level 1.
    torch.testing.assert_close(points[0, 0], torch.tensor([[0.25, 0.5], [0.5, 0.5]]))
    boxes = scale_to_levels(torch.tensor([[[0.5, 0.5, 0.2, 0.4]]]), ratios)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([[0.25, 0.5, 0.1, 0.4], [0.5, 0.5, 0.2, 0.4]]))


def test_inverse_sigmoid() -> None:
    x = torch.tensor([-1.0, 0.0, 0.3, 1.0, 2.0])
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), torch.tensor([1e-5, 1e-5, 0.3, 1 - 1e-5, 1 - 1e-5]))
