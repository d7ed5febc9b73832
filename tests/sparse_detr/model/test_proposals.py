"""Proposals of tokens and the queries that come of them."""

from __future__ import annotations

import pytest
import torch

from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.position_encoding import encode_boxes
from sparse_detr.model.proposals import ObjectQueries, ProposalGrid, TopKQueries, proposal_grid
from sparse_detr.model.reference_points import inverse_sigmoid
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


def make_head(seed: int) -> DetectionHead:
    torch.manual_seed(seed)
    head = DetectionHead(32, 5)
    torch.nn.init.normal_(head.boxes.last.weight)
    return head


def make_queries(number: int, **options: bool) -> tuple[TopKQueries, torch.Tensor, FeaturePyramid]:
    head = make_head(0)
    pyramid = pyramid_of(((4, 4), (2, 2)), torch.zeros(2, 20, dtype=torch.bool), torch.ones(2, 2, 2))
    return TopKQueries(head, 32, number, **options), torch.randn(2, 20, 32, requires_grad=True), pyramid


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_best_tokens_become_queries_and_the_short_way_gives_the_same(class_agnostic: bool) -> None:
    queries, memory, pyramid = make_queries(6, class_agnostic=class_agnostic)
    grid, other = proposal_grid(pyramid), make_head(1)
    full, short = queries(memory, grid, other, True), queries(memory, grid, other, False)
    assert short.proposals is None
    assert full.proposals is not None
    logits = full.proposals.logits
    scores = logits[..., 0] if class_agnostic else logits.amax(-1)
    assert torch.equal(scores.sort(dim=1, descending=True).indices[:, :6], full.tokens)
    for ours, theirs in zip(full[:4], short[:4], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not full.references.requires_grad
    assert full.content.requires_grad
    rows = torch.arange(2)[:, None]
    assert torch.equal(full.references, full.proposals.boxes[rows, full.tokens])


def test_fewer_tokens_than_queries() -> None:
    queries, memory, pyramid = make_queries(50)
    found = queries(memory, proposal_grid(pyramid), make_head(1), False)
    assert found.tokens.shape == (2, 20)
    assert found.references.isfinite().all()


def test_content_from_the_proposal_depends_on_its_box_alone() -> None:
    queries, memory, pyramid = make_queries(6, content_from_memory=False)
    found = queries(memory, proposal_grid(pyramid), make_head(1), False)
    # Two-stage Deformable DETR: 4 x 16 sines of the box -> linear -> norm; first half position, second half content.
    expected = queries.position_norm(queries.position(encode_boxes(found.references, 16)))
    torch.testing.assert_close(torch.cat((found.position, found.content), dim=-1), expected)
    assert found.content.shape == (2, 6, 32)


def test_without_a_head_of_its_own_it_uses_the_shared_one() -> None:
    own, memory, pyramid = make_queries(6)
    assert own.head is not None
    grid, shared = proposal_grid(pyramid), own.head
    expected = own(memory, grid, make_head(1), True)
    own.head = None
    found = own(memory, grid, shared, True)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.references, expected.references)
    assert not any(name.startswith("head") for name, _ in own.named_parameters())


def test_object_queries_start_without_content_and_without_a_place() -> None:
    torch.manual_seed(0)
    queries = ObjectQueries(32, 7)
    memory = torch.randn(2, 20, 32)
    grid = ProposalGrid(torch.zeros(2, 20, 4), torch.zeros(2, 20, dtype=torch.bool))
    found = queries(memory, grid, make_head(1), False)
    assert not found.content.any()
    assert torch.equal(found.position[1], queries.embedding.weight)
    assert torch.equal(inverse_sigmoid(found.references), torch.zeros(2, 7, 2))
