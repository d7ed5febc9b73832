"""The count of single layers, against torch's own counter and layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparse_detr.cost.work import Work, deformable_attention, feedforward, full_attention, layer_norm, linear


def _counted(module: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Multiply-adds that torch counts, and parameters."""
    module.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2, sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    work = linear(5, 7, 3, bias=bias)
    assert (work.products, work.parameters) == _counted(nn.Linear(7, 3, bias=bias), torch.randn(5, 7))
    assert work.total == 105


def test_norms_count_five_for_each_number() -> None:
    assert layer_norm(3, 8) == Work(norms=120, parameters=sum(p.numel() for p in nn.LayerNorm(8).parameters()))


def test_feedforward() -> None:
    work = feedforward(6, 8, 20)
    assert (work.products, work.parameters) == _counted(
        nn.Sequential(nn.Linear(8, 20), nn.Linear(20, 8)), torch.randn(6, 8)
    )


def test_full_attention_between_different_numbers_of_queries_and_tokens() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    queries, tokens = torch.randn(1, 5, 16), torch.randn(1, 9, 16)
    work = full_attention(5, 9, 16)
    assert (work.products, work.parameters) == _counted(attention, queries, tokens, tokens + 1)


def test_deformable_attention_samples_with_every_head() -> None:
    """8 heads of 32 channels, 16 samples: 16384 operations a query (algorithm.md, section 17)."""
    work = deformable_attention(10, 40, 256, samples=16, heads=8)
    assert work.sampling == 10 * 16384
    assert work.products == 40 * 65536 + 10 * (65536 + 32768 + 65536)


def test_parts_add_up_and_idle_layers_keep_their_parameters() -> None:
    one = Work(products=3, sampling=2, norms=1, parameters=10)
    assert one + one == one * 2
    assert one.total == 6
    assert one.idle() == Work(parameters=10)
    assert one.reused() == Work(products=3, sampling=2, norms=1)
