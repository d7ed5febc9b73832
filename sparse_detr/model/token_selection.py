"""Selection of the tokens that the encoder updates: the top rho of each image (Sparse DETR, section 3.1)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_detr.records import TokenSelection


def kept_counts(padding: Bool[Tensor, "B T"], keep_ratio: float) -> Int[Tensor, " B"]:
    """Tokens to update in each image: keep_ratio of those that are image (float32 product, cut off), plus 1."""
    # float32 and cut off, as the authors count: in float64 90 * 0.7 is 62.99..., which is one token less.
    tokens = (~padding).sum(1).to(torch.float32)
    return (tokens * keep_ratio).long() + 1


def select_tokens(saliency: Float[Tensor, "B T"], padding: Bool[Tensor, "B T"], keep_ratio: float) -> TokenSelection:
    """The most salient tokens of each image.

    All images get K rows, the largest count of the batch. The rows of image b past `counts[b]` pass through
    the encoder's layers (and its auxiliary heads) but are never written into the memory.
    """
    counts = kept_counts(padding, keep_ratio).clamp(max=saliency.shape[1])
    # One K for all images keeps the encoder free of loops; the largest count makes the device wait here, once a batch.
    kept = saliency.topk(int(counts.max()), dim=1).indices
    return TokenSelection(saliency=saliency, kept=kept, counts=counts)


def gather_tokens(tokens: Float[Tensor, "B T *n"], indices: Int[Tensor, "B K"]) -> Float[Tensor, "B K *n"]:
    """Rows `indices` of each image."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], indices]


def scatter_tokens(
    tokens: Float[Tensor, "B T C"], updated: Float[Tensor, "B K C"], selection: TokenSelection
) -> Float[Tensor, "B T C"]:
    """A copy of `tokens` with each image's first `counts[b]` updated rows written back."""
    rank = torch.arange(updated.shape[1], device=tokens.device)
    written = (rank < selection.counts[:, None])[..., None]
    index = selection.kept[..., None].expand_as(updated)
    # Rows that are not written back put the old value in its own place: no data-dependent shapes, no loop.
    return tokens.scatter(1, index, torch.where(written, updated.to(tokens.dtype), tokens.gather(1, index)))
