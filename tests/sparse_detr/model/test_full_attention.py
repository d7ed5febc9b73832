"""Full attention against the formula, in float64."""

from __future__ import annotations

import torch

from sparse_detr.model.full_attention import FullAttention
from sparse_detr.records import FeaturePyramid


def test_softmax_over_all_tokens_that_are_image() -> None:
    torch.manual_seed(0)
    attention = FullAttention(32, 4, 0.0).double()
    torch.nn.init.normal_(attention.attention.in_proj_bias)
    memory, position = torch.randn(2, 6, 32).double(), torch.randn(2, 6, 32).double()
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    pyramid = FeaturePyramid(
        tokens=memory, position=position, padding=padding, valid_ratios=torch.ones(2, 1, 2).double(), shapes=((2, 3),)
    )
    queries = torch.randn(2, 5, 32).double()
    found = attention(queries, torch.zeros(2, 5, 1, 2).double(), memory, pyramid)
    assert (found.locations, found.weights) == (None, None)
    inner = attention.attention
    (wq, wk, wv), (bq, bk, bv) = inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3)
    for image in range(2):
        seen = ~padding[image]
        q = (queries[image] @ wq.T + bq).view(5, 4, 8)
        k = ((memory + position)[image, seen] @ wk.T + bk).view(-1, 4, 8)
        v = (memory[image, seen] @ wv.T + bv).view(-1, 4, 8)
        shares = (torch.einsum("qmd,tmd->mqt", q, k) / 8**0.5).softmax(-1)
        mixed = torch.einsum("mqt,tmd->qmd", shares, v).flatten(1)
        torch.testing.assert_close(found.output[image], inner.out_proj(mixed))
