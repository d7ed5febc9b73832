from __future__ import annotations

import math

import pytest
import torch

from sparse_detr.evaluation.attention_overlap import AttentionOverlap

SHAPES = ((1, 3), (1, 1))


def test_means_over_images_of_several_batches():
    overlap = AttentionOverlap()
    overlap.add(torch.tensor([[1.0, 1.0, 2.0, 4.0]]), torch.tensor([[2, 3]]), SHAPES)
    overlap.add(torch.tensor([[4.0, 0.0, 0.0, 0.0], [2.0, 2.0, 0.0, 4.0]]), torch.tensor([[0], [0]]), SHAPES)
    report = overlap.report()
    assert report.images == 3
    assert report.overall == pytest.approx((6 / 8 + 1 + 2 / 8) / 3)
    # The second image's coarse level got no attention: it is left out of that level's mean.
    assert report.levels == pytest.approx(((2 / 4 + 1 + 2 / 4) / 3, (1 + 0) / 2))


def test_without_images():
    report = AttentionOverlap().report()
    assert report.images == 0
    assert math.isnan(report.overall)
