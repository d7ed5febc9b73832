from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_detr.decoder_attention import attention_share, decoder_attention_map
from sparse_detr.records import DecoderAttention

SHAPES = ((4, 5), (2, 2))


def one_point(x, y, level, weight=1.0):
    """Attention of a single point on one level, at (x, y) in pixels of that level."""
    locations = torch.full((1, 1, 1, 1, 2, 1, 2), -9.0)
    weights = torch.zeros((1, 1, 1, 1, 2, 1))
    h, w = SHAPES[level]
    locations[0, 0, 0, 0, level, 0] = torch.tensor([x / w, y / h])
    weights[0, 0, 0, 0, level, 0] = weight
    return DecoderAttention(locations=locations, weights=weights)


def test_equals_the_authors_accumulation(shared: Path):
    core = {key: torch.from_numpy(value) for key, value in np.load(shared / "golden" / "core.npz").items()}
    shapes = tuple((h, w) for h, w in core["core_shapes"].tolist())
    attention = DecoderAttention(locations=core["dam_loc"], weights=core["dam_attn"])
    dam = decoder_attention_map(attention, shapes)
    torch.testing.assert_close(dam, core["dam_out"].sum(dim=(1, 2)), atol=1e-5, rtol=1e-5)


def test_equals_the_authors_accumulation_of_every_layer_and_head_and_their_correlation(shared: Path):
    core = {key: torch.from_numpy(value) for key, value in np.load(shared / "golden" / "core.npz").items()}
    shapes = tuple((h, w) for h, w in core["core_shapes"].tolist())
    for layer in range(core["dam_out"].shape[1]):
        for head in range(core["dam_out"].shape[2]):
            part = (slice(None), slice(layer, layer + 1), slice(None), slice(head, head + 1))
            attention = DecoderAttention(locations=core["dam_loc"][part], weights=core["dam_attn"][part])
            dam = decoder_attention_map(attention, shapes)
            torch.testing.assert_close(dam, core["dam_out"][:, layer, head], atol=1e-6, rtol=1e-5)
    attention = DecoderAttention(locations=core["dam_loc"], weights=core["dam_attn"])
    share = attention_share(decoder_attention_map(attention, shapes), core["dam_top"], shapes)
    torch.testing.assert_close(share.T, core["dam_corr"], rtol=1e-5, atol=1e-6)


def test_whole_pixels_hit_one_token_and_half_pixels_four():
    dam = decoder_attention_map(one_point(3.0, 2.0, 0, weight=0.7), SHAPES)
    assert dam[0, 2 * 5 + 3].item() == pytest.approx(0.7, abs=1e-5)
    assert dam.sum().item() == pytest.approx(0.7, abs=1e-5)
    dam = decoder_attention_map(one_point(0.5, 0.5, 1), SHAPES)
    assert dam[0, 20:].tolist() == pytest.approx([0.25] * 4, abs=1e-5)


def test_bilinear_shares():
    dam = decoder_attention_map(one_point(1.25, 2.0, 0), SHAPES)
    assert dam[0, 2 * 5 + 1].item() == pytest.approx(0.75, abs=1e-5)
    assert dam[0, 2 * 5 + 2].item() == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "rest"), [(-0.5, 1.0, 0.5), (4.5, 1.0, 0.5), (1.0, 3.5, 0.5), (-1.5, 0.0, 0.0), (1e20, -1e20, 0.0)]
)
def test_what_falls_outside_is_lost(x, y, rest):
    assert decoder_attention_map(one_point(x, y, 0), SHAPES).sum().item() == pytest.approx(rest, abs=1e-5)


def test_float64_stays_float64():
    attention = one_point(1.25, 2.5, level=0)
    wide = DecoderAttention(locations=attention.locations.double(), weights=attention.weights.double())
    dam = decoder_attention_map(wide, SHAPES)
    assert dam.dtype == torch.float64
    torch.testing.assert_close(dam.float(), decoder_attention_map(attention, SHAPES), atol=1e-6, rtol=0)
