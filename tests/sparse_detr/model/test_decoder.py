"""The decoder: refinement, its detached steps, and heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparse_detr import ModelConfig
from sparse_detr.model.build import build_decoder
from sparse_detr.model.proposals import Queries
from sparse_detr.records import FeaturePyramid

CONFIG = ModelConfig(
    num_classes=3, channels=32, heads=4, levels=3, points=2, encoder_layers=1, decoder_layers=3,
    feedforward_channels=64, queries=5, dropout=0.0, keep_ratio=1.0,
)  # fmt: skip


def inputs(size: int) -> tuple[Queries, torch.Tensor, FeaturePyramid]:
    torch.manual_seed(1)
    memory = torch.randn(2, 21, 32)
    pyramid = FeaturePyramid(
        tokens=memory,
        position=memory,
        padding=torch.zeros(2, 21, dtype=torch.bool),
        valid_ratios=torch.ones(2, 3, 2),
        shapes=((4, 4), (2, 2), (1, 1)),
    )
    references = torch.rand(2, 5, size) * 0.6 + 0.2
    return Queries(torch.randn(2, 5, 32), torch.randn(2, 5, 32), references, None, None), memory, pyramid


@pytest.mark.parametrize("refine", [True, False])
def test_the_last_layer_is_the_same_with_and_without_auxiliary(refine: bool) -> None:
    decoder = build_decoder(replace(CONFIG, box_refinement=refine))
    for head in decoder.heads:
        torch.nn.init.normal_(head.boxes.last.weight)
    queries, memory, pyramid = inputs(4)
    full = decoder(queries, memory, pyramid, True)
    short = decoder(queries, memory, pyramid, False)
    assert len(full.predictions) == 3
    assert len(short.predictions) == 1
    torch.testing.assert_close(full.predictions[-1].boxes, short.predictions[0].boxes)
    assert short.attention is None
    assert full.attention is not None
    assert full.attention.locations.shape == (2, 3, 5, 4, 3, 2, 2)
    torch.testing.assert_close(full.attention.weights.sum((-1, -2)), torch.ones(2, 3, 5, 4))
    assert not full.attention.locations.requires_grad


def test_refinement_starts_each_layer_from_the_box_before_without_gradient() -> None:
    decoder = build_decoder(CONFIG)
    queries, memory, pyramid = inputs(4)
    with torch.no_grad():
        decoder.heads[0].boxes.last.bias.fill_(1.0)
    predictions = decoder(queries, memory, pyramid, True).predictions
    expected = (queries.references.logit() + 1).sigmoid()
    for layer in range(3):  # layers 1 and 2 add nothing yet
        torch.testing.assert_close(predictions[layer].boxes, expected)
    predictions[2].boxes.sum().backward()
    assert decoder.heads[0].boxes.last.bias.grad is None


def test_learned_queries_share_one_head_and_keep_their_points() -> None:
    config = replace(
        CONFIG, query_source="learned", box_refinement=False, shared_heads=True, encoder_auxiliary_loss=False
    )
    decoder = build_decoder(config)
    assert len(decoder.heads) == 1
    queries, memory, pyramid = inputs(2)
    for predictions in decoder(queries, memory, pyramid, True).predictions:
        torch.testing.assert_close(predictions.boxes[..., :2], queries.references)
        torch.testing.assert_close(predictions.boxes[..., 2:], torch.full((2, 5, 2), -2.0).sigmoid())
