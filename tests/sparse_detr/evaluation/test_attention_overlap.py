from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparse_detr.decoder_attention import decoder_attention_map
from sparse_detr.detector import SparseDetr
from sparse_detr.evaluation.attention_overlap import OverlapMean, attention_overlap
from sparse_detr.model.config import BackboneConfig, ModelConfig
from sparse_detr.records import DecoderAttention, ImageBatch, Output, TokenSelection

SHAPES = ((2, 2), (1, 1))


def looks_at(*tokens):
    """Attention of weight 1 on each (x, y, level); every other point looks outside."""
    locations = torch.full((1, 1, len(tokens), 1, 2, 1, 2), -9.0)
    weights = torch.zeros((1, 1, len(tokens), 1, 2, 1))
    for query, (x, y, level) in enumerate(tokens):
        h, w = SHAPES[level]
        locations[0, 0, query, 0, level, 0] = torch.tensor([x / w, y / h])
        weights[0, 0, query, 0, level, 0] = 1.0
    return DecoderAttention(locations=locations, weights=weights)


def output(attention, kept, count):
    chosen = torch.tensor([kept])
    return Output(
        logits=torch.zeros(1, 1, 1),
        boxes=torch.zeros(1, 1, 4),
        kept_tokens=chosen,
        query_tokens=None,
        shapes=SHAPES,
        token_padding=torch.zeros(1, 5, dtype=torch.bool),
        selection=TokenSelection(saliency=torch.zeros(1, 5), kept=chosen, counts=torch.tensor([count])),
        decoder_attention=attention,
    )


def test_by_hand():
    attention = looks_at((0, 0, 0), (0, 0, 0), (1, 1, 0), (0, 0, 1))  # token 0 twice, token 3, token 4
    shares = attention_overlap(output(attention, [4, 0], 2))
    torch.testing.assert_close(shares, torch.tensor([[3 / 4, 2 / 3, 1.0]]))


def test_rows_past_an_images_number_do_not_count():
    attention = looks_at((0, 0, 0), (1, 1, 0))
    shares = attention_overlap(output(attention, [3, 0], 1))
    assert shares[0, :2].tolist() == [0.5, 0.5]
    assert shares[0, 2].isnan()  # nobody looked at level 1


def test_nothing_to_measure_is_none():
    sparse = output(looks_at((0, 0, 0)), [0], 1)
    assert attention_overlap(replace(sparse, selection=None)) is None
    assert attention_overlap(replace(sparse, decoder_attention=None)) is None


def test_mean_leaves_out_levels_without_attention_and_merges_ranks():
    first, second = OverlapMean(), OverlapMean()
    first.add(torch.tensor([[0.2, 0.4, float("nan")], [0.4, 0.6, 0.5]]))
    second.add(None)
    assert second.summary() == {}
    second.add(torch.tensor([[0.9, 0.8, float("nan")]]))
    first.merge([second, OverlapMean()])
    assert first.summary() == pytest.approx({"corr": 0.5, "corr_0": 0.6, "corr_1": 0.5})
    nothing = OverlapMean()
    nothing.add(torch.full((2, 3), float("nan")))
    assert nothing.summary() == {}


@pytest.mark.parametrize("criterion", ["decoder_attention", "objectness"])
def test_both_criteria_are_measured_and_padding_of_a_batch_changes_no_counts(criterion):
    torch.manual_seed(0)
    config = ModelConfig(num_classes=3, backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0),
                         channels=32, heads=4, levels=3, encoder_layers=1, decoder_layers=2, feedforward_channels=32,
                         queries=10, keep_ratio=0.3, token_criterion=criterion)  # fmt: skip
    model = SparseDetr(config).eval()
    images = [torch.randn(3, 64, 64), torch.randn(3, 40, 48)]
    with torch.no_grad():
        found = model(ImageBatch.from_list(images), with_auxiliary=True)
    shares = attention_overlap(found)
    dam = decoder_attention_map(found.decoder_attention, found.shapes)
    for row, count in enumerate(found.selection.counts.tolist()):
        by_hand = dam[row, found.selection.kept[row, :count]].sum() / dam[row].sum()
        torch.testing.assert_close(shares[row, 0], by_hand)
