"""Proposals of tokens and the queries that come of them."""

from __future__ import annotations

import torch

from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.proposals import TopKQueries, proposal_grid
from sparse_detr.records import FeaturePyramid, Shapes


def pyramid_of(shapes: Shapes, padding: torch.Tensor, valid_ratios: torch.Tensor) -> FeaturePyramid:
    tokens = torch.randn(*padding.shape, 32)
    return FeaturePyramid(tokens=tokens, position=tokens, padding=padding, valid_ratios=valid_ratios, shapes=shapes)


def test_grid() -> None:
    shapes = ((2, 4), (1, 2))
    padding = torch.zeros(1, 10, dtype=torch.bool)
    padding[0, [2, 3, 6, 7, 9]] = True  # the right half
    ratios = torch.tensor([[[0.5, 1.0], [0.5, 1.0]]])
    grid = proposal_grid(pyramid_of(shapes, padding, ratios))
    assert torch.equal(grid.unusable, padding)
    boxes = grid.logits.sigmoid()
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.25, 0.25, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 5], torch.tensor([0.75, 0.75, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 8], torch.tensor([0.5, 0.5, 0.1, 0.1]))
    torch.testing.assert_close(boxes[0, 9], torch.ones(4))


def test_cells_at_the_border_are_unusable() -> None:
    padding = torch.zeros(1, 100, dtype=torch.bool)
    grid = proposal_grid(pyramid_of(((1, 100),), padding, torch.ones(1, 1, 2)))
    # Centres 0.005 and 0.995 lie within 0.01 of the border.
    assert grid.unusable[0].nonzero().flatten().tolist() == [0, 99]


def make_queries(number: int) -> tuple[TopKQueries, torch.Tensor, FeaturePyramid]:
    torch.manual_seed(0)
    head = DetectionHead(32, 5)
    torch.nn.init.normal_(head.boxes.last.weight)
    pyramid = pyramid_of(((4, 4), (2, 2)), torch.zeros(2, 20, dtype=torch.bool), torch.ones(2, 2, 2))
    return TopKQueries(head, 32, number), torch.randn(2, 20, 32, requires_grad=True), pyramid


def test_best_tokens_become_queries_and_the_short_way_gives_the_same() -> None:
    queries, memory, pyramid = make_queries(6)
    grid = proposal_grid(pyramid)
    full, short = queries(memory, grid, True), queries(memory, grid, False)
    assert short.proposals is None
    assert full.proposals is not None
    scores = full.proposals.logits.amax(-1)
    assert torch.equal(scores.sort(dim=1, descending=True).indices[:, :6], full.tokens)
    for ours, theirs in zip(full[:4], short[:4], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not full.references.requires_grad
    assert full.content.requires_grad
    rows = torch.arange(2)[:, None]
    assert torch.equal(full.references, full.proposals.boxes[rows, full.tokens])


def test_fewer_tokens_than_queries() -> None:
    queries, memory, pyramid = make_queries(50)
    found = queries(memory, proposal_grid(pyramid), False)
    assert found.tokens.shape == (2, 20)
    assert found.references.isfinite().all()
