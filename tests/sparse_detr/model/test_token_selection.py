"""Counting, choosing, gathering and scattering tokens."""

from __future__ import annotations

import pytest
import torch

from sparse_detr.model.token_selection import gather_tokens, kept_counts, scatter_tokens, select_tokens
from sparse_detr.records import TokenSelection


def padding_of(*sizes: int, tokens: int) -> torch.Tensor:
    return torch.arange(tokens)[None] >= torch.tensor(sizes)[:, None]


@pytest.mark.parametrize(("size", "ratio", "kept"), [(1020, 0.1, 103), (747, 0.1, 75), (10, 0.3, 4), (9, 0.99, 9)])
def test_counts_are_cut_off_plus_one(size: int, ratio: float, kept: int) -> None:
    assert kept_counts(padding_of(size, tokens=1020), ratio).tolist() == [kept]


def test_counts_use_the_float32_product() -> None:
    # In float64 100 * 0.29 is 28.999999999999996; in float32 it rounds to 29.
    assert int(100 * 0.29) == 28
    assert kept_counts(padding_of(100, tokens=100), 0.29).tolist() == [30]


def test_the_most_salient_tokens_are_kept() -> None:
    saliency = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.4, 0.2, -9.0, -9.0]])
    selection = select_tokens(saliency, padding_of(4, 2, tokens=4), 0.5)
    assert selection.counts.tolist() == [3, 2]
    assert selection.kept[0].tolist() == [1, 2, 3]
    assert selection.kept[1, :2].tolist() == [0, 1]


def test_scatter_writes_each_image_its_own_number_of_rows() -> None:
    tokens = torch.arange(8.0).view(2, 4, 1).requires_grad_()
    kept = torch.tensor([[2, 0, 3], [1, 3, 0]])
    selection = TokenSelection(saliency=torch.zeros(2, 4), kept=kept, counts=torch.tensor([3, 1]))
    updated = (gather_tokens(tokens.detach(), kept) + 100).requires_grad_()
    result = scatter_tokens(tokens, updated, selection)
    assert result[..., 0].tolist() == [[100, 1, 102, 103], [4, 105, 6, 7]]
    result.sum().backward()
    assert updated.grad is not None
    assert updated.grad[..., 0].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokens.grad is not None
    assert tokens.grad[..., 0].tolist() == [[0, 1, 0, 0], [1, 0, 1, 1]]
