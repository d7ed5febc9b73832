from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from sparse_detr.losses.classification import class_error, classification_loss, focal_negative, focal_positive
from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.matcher import Matching


def matching_of(rows, rows_per_set):
    images, predictions, objects = torch.tensor(rows).T
    return Matching(images=images, predictions=predictions, objects=objects, rows_per_set=rows_per_set)


MATCHING = matching_of([[0, 1, 0], [1, 0, 1], [0, 5, 0], [1, 4, 1]], (2, 2))
LABELS = torch.tensor([2, 0])


def one_hot_focal(logits, config):
    """The textbook form: a one-hot target as large as the logits, binary cross-entropy, modulation."""
    target = torch.zeros_like(logits)
    target[MATCHING.images, MATCHING.predictions, LABELS[MATCHING.objects]] = 1
    p = logits.sigmoid()
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = config.focal_alpha * target + (1 - config.focal_alpha) * (1 - target)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return alpha_t * (1 - p_t) ** config.focal_gamma * entropy


@pytest.mark.parametrize("config", [LossConfig(), LossConfig(focal_alpha=0.4, focal_gamma=1.5)])
def test_equals_the_textbook_form_in_value_and_gradient(config):
    torch.manual_seed(0)
    logits = torch.randn((2, 7, 3), dtype=torch.float64).mul(3).requires_grad_()
    loss = classification_loss(logits, MATCHING, LABELS, (3, 4), config)
    expected = one_hot_focal(logits, config)
    torch.testing.assert_close(loss, torch.stack((expected[:, :3].sum(), expected[:, 3:].sum())))
    (found,) = torch.autograd.grad(loss.sum(), logits)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([-200.0, -80.0, 80.0, 200.0]).requires_grad_()
    loss = focal_negative(logits, LossConfig()).sum() + focal_positive(logits, LossConfig()).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert focal_negative(torch.tensor([200.0]), LossConfig()).item() == pytest.approx(0.75 * 200)


def test_class_error_counts_the_first_set_only():
    logits = torch.zeros((2, 7, 3))
    logits[0, 1, 2] = 1  # right: object 0 has class 2
    logits[1, 0, 1] = 1  # wrong: object 1 has class 0
    assert class_error(logits, MATCHING, LABELS).item() == 50
    nothing = matching_of([[0, 0, 0]], (0, 1))
    assert class_error(logits, nothing, LABELS).item() == 100
