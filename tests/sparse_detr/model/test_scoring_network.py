"""The token criteria's treatment of padding."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.objectness import ObjectnessHead
from sparse_detr.model.scoring_network import ScoringNetwork


def saliency(network: ScoringNetwork | ObjectnessHead, tokens: Tensor, padding: Tensor) -> Tensor:
    scores: Tensor = network(tokens, padding, torch.zeros(*padding.shape, 4), False).saliency
    return scores


def padded(count: int) -> Tensor:
    """Two images of six tokens, of which the second lacks the last `count`."""
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 6 - count :] = True
    return padding


def test_mean_over_all_gives_padded_tokens_the_smallest_score_of_the_batch_with_its_gradient() -> None:
    torch.manual_seed(0)
    network = ScoringNetwork(32, mean_over_all=True)
    tokens = torch.randn(2, 6, 32, requires_grad=True)
    free, found = saliency(network, tokens, padded(0)), saliency(network, tokens, padded(2))
    assert torch.equal(found[~padded(2)], free[~padded(2)])
    assert torch.equal(found[1, 4:], free.min().expand(2))
    (gradient,) = torch.autograd.grad(found[1, 4], tokens)
    (expected,) = torch.autograd.grad(free.min(), tokens)
    torch.testing.assert_close(gradient, expected)
    assert gradient.any()


def test_context_is_the_mean_of_all_tokens() -> None:
    torch.manual_seed(0)
    network = ScoringNetwork(32, mean_over_all=True)
    tokens = torch.randn(1, 6, 32)
    padding = torch.zeros(1, 6, dtype=torch.bool)
    changed = tokens.clone()
    changed[0, 5] += 1 + torch.randn(32)
    before = saliency(network, tokens, padding)
    assert not torch.isclose(before[0, 0], saliency(network, changed, padding)[0, 0], atol=1e-7)
    order = torch.tensor([0, 3, 2, 1, 4, 5])
    torch.testing.assert_close(saliency(network, tokens[:, order], padding), before[:, order])


def test_mean_over_valid_tokens_sees_neither_padding_nor_other_images() -> None:
    torch.manual_seed(0)
    network = ScoringNetwork(32)
    tokens = torch.randn(2, 6, 32)
    found = saliency(network, tokens, padded(2))
    alone = saliency(network, tokens[1:, :4], padded(0)[1:, :4])
    torch.testing.assert_close(found[1, :4], alone[0])
    assert torch.equal(found[1, 4:], found[1, :4].min().expand(2))
    changed = tokens.clone()
    changed[1, 4:] = 100.0
    changed[0] *= -3.0
    torch.testing.assert_close(saliency(network, changed, padded(2))[1], found[1])
    assert torch.equal(saliency(network, tokens, padded(0))[0], found[0])


def test_without_padding_both_means_are_the_same() -> None:
    torch.manual_seed(0)
    network, theirs = ScoringNetwork(32), ScoringNetwork(32, mean_over_all=True)
    theirs.load_state_dict(network.state_dict())
    tokens = torch.randn(2, 6, 32)
    torch.testing.assert_close(saliency(network, tokens, padded(0)), saliency(theirs, tokens, padded(0)))


def test_objectness_is_the_best_class_and_boxes_start_from_the_proposals() -> None:
    torch.manual_seed(0)
    head = DetectionHead(32, 5)
    torch.nn.init.normal_(head.boxes.last.weight)
    network = ObjectnessHead(head)
    tokens, proposals = torch.randn(2, 6, 32), torch.randn(2, 6, 4)
    scored = network(tokens, padded(2), proposals, True)
    best = torch.stack([head.classes(tokens)[..., label] for label in range(5)]).max(0).values
    assert torch.equal(scored.saliency[~padded(2)], best[~padded(2)])
    assert torch.equal(scored.saliency[1, 4:], best[1, :4].min().expand(2))
    assert torch.equal(scored.predictions.boxes, head.boxes(tokens, proposals))
    assert network(tokens, padded(2), proposals, False).predictions is None
