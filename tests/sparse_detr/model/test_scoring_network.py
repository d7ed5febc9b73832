"""The scoring network's treatment of padding."""

from __future__ import annotations

import torch

from sparse_detr.model.scoring_network import ScoringNetwork


def test_padded_tokens_get_the_smallest_score_of_the_batch_with_its_gradient() -> None:
    torch.manual_seed(0)
    network = ScoringNetwork(32)
    tokens = torch.randn(2, 6, 32, requires_grad=True)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    free = network(tokens, padding)
    padding = padding.clone()
    padding[1, 4:] = True
    saliency = network(tokens, padding)
    assert torch.equal(saliency[~padding], free[~padding])
    assert torch.equal(saliency[1, 4:], free.min().expand(2))
    (gradient,) = torch.autograd.grad(saliency[1, 4], tokens)
    (expected,) = torch.autograd.grad(free.min(), tokens)
    torch.testing.assert_close(gradient, expected)
    assert gradient.any()


def test_context_is_the_mean_of_all_tokens() -> None:
    torch.manual_seed(0)
    network = ScoringNetwork(32)
    tokens = torch.randn(1, 6, 32)
    padding = torch.zeros(1, 6, dtype=torch.bool)
    changed = tokens.clone()
    changed[0, 5] += 1 + torch.randn(32)
    assert not torch.isclose(network(tokens, padding)[0, 0], network(changed, padding)[0, 0], atol=1e-7)
    order = torch.tensor([0, 3, 2, 1, 4, 5])
    torch.testing.assert_close(network(tokens[:, order], padding), network(tokens, padding)[:, order])
