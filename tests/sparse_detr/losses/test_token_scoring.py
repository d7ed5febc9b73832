from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from sparse_detr.losses.token_scoring import token_scoring_loss


def test_equals_the_authors_value(golden):
    loss = token_scoring_loss(golden.arrays["mask_prediction"], golden.arrays["dam_target"].float())
    assert loss.item() == pytest.approx(golden.losses["loss_mask_prediction"], rel=1e-5)


def test_is_the_multilabel_soft_margin_and_stays_finite():
    saliency = torch.tensor([[2.0, -1.0, 0.5], [-300.0, 300.0, 0.0]])
    target = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    loss = token_scoring_loss(saliency, target)
    assert loss.item() == pytest.approx(F.multilabel_soft_margin_loss(saliency, target).item(), rel=1e-6)
    assert torch.isfinite(loss)
