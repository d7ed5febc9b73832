"""Multi-scale deformable attention in plain torch: the oracle of the faster kernels, and their fallback.

Deformable DETR (Zhu et al., 2021), equation 3, without the linear projections around it.

Every sample is four rows of `value` with bilinear corner_weights, so a head's output is a weighted sum of L x P x 4
rows: `embedding_bag`. That is 1.3 to 3 times as fast on a CPU as one `grid_sample` per level, and computes the
same (zero padding, `align_corners=False`).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sparse_detr.records import Shapes


def deformable_attention(
    value: Float[Tensor, "B T M D"],
    shapes: Shapes,
    locations: Float[Tensor, "B Q M L P 2"],
    weights: Float[Tensor, "B Q M L P"],
) -> Float[Tensor, "B Q MD"]:
    """Weighted bilinear samples of `value`, summed over levels and points.

    Args:
        value: projected tokens of all levels, flattened row by row, fine to coarse.
        shapes: (height, width) of every level; the areas sum to T.
        locations: (x, y), relative to each level: 0 and 1 are the outer edges of its first and last pixel. What
            is outside, and NaN, contributes zero.
        weights: after the softmax over L x P.

    Returns:
        One row of M x D numbers for each query. Differentiable in value, locations and weights.
    """
    batch, tokens, heads, width = value.shape
    queries = locations.shape[1]
    corners, corner_weights = _bilinear(shapes, locations, weights)
    first = torch.arange(batch * tokens * heads, device=value.device).view(batch, tokens, heads)[:, 0]
    rows = corners * heads + first.view(batch, 1, heads, 1)
    output: Tensor = _WeightedRows.apply(  # type: ignore[no-untyped-call]
        value.reshape(batch * tokens * heads, width),
        rows.view(batch * queries * heads, rows.shape[-1]),
        corner_weights.view(batch * queries * heads, rows.shape[-1]).to(value.dtype),
    )
    return output.view(batch, queries, heads * width)


def fused_deformable_attention(
    value: Float[Tensor, "B T M D"],
    shapes: Shapes,
    references: Float[Tensor, "B Q L size"],
    offsets: Float[Tensor, "B Q M L P 2"],
    logits: Float[Tensor, "B Q M L P"],
) -> Float[Tensor, "B Q MD"]:
    """The same from reference points (or boxes), raw offsets and logits; see `locate`."""
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    return deformable_attention(value, shapes, locate(references, offsets, shapes), weights)


def locate(
    references: Float[Tensor, "B Q L size"], offsets: Float[Tensor, "B Q M L P 2"], shapes: Shapes
) -> Float[Tensor, "B Q M L P 2"]:
    """Sampling locations (Deformable DETR, appendix A.3 and A.4).

    Beside (x, y), offsets are in pixels of the level; beside (cx, cy, w, h), in half extents over P.
    """
    return references[:, :, None, :, None, :2] + offsets * location_step(references, shapes, offsets.shape[4])


def location_step(references: Float[Tensor, "B Q L size"], shapes: Shapes, points: int) -> Tensor:
    """Distance that an offset of 1 moves the location, broadcast over heads and points."""
    if references.shape[-1] == 4:
        return references[:, :, None, :, None, 2:] * (0.5 / points)
    return 1 / _sizes(references, shapes)[:, None]


def _sizes(like: Tensor, shapes: Shapes) -> Float[Tensor, "L 2"]:
    """(width, height) of the levels."""
    return _numbers(like, [size for height, width in shapes for size in (width, height)]).view(-1, 2)


def _numbers(like: Tensor, numbers: list[int]) -> Float[Tensor, " N"]:
    """As a tensor; symbolic ones, of a compiled graph, stay symbolic."""
    if torch.compiler.is_compiling() or any(isinstance(number, torch.SymInt) for number in numbers):
        return torch.stack([like.new_full((), number) for number in numbers])
    return like.new_tensor(numbers)


class _WeightedRows(torch.autograd.Function):
    """Weighted sums of rows of a table: `embedding_bag` with a backward that is twice as fast on a CPU.

    The gradient of the table is such a sum too, with the roles of rows and sums exchanged.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, corner_weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, corner_weights)
        return functional.embedding_bag(rows, table, per_sample_weights=corner_weights, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows, corner_weights = ctx.saved_tensors
        for_table = _table_gradient(gradient, rows, corner_weights, len(table)) if ctx.needs_input_grad[0] else None
        for_weights = _weights_gradient(gradient, table, rows, corner_weights) if ctx.needs_input_grad[2] else None
        return for_table, None, for_weights


def _table_gradient(gradient: Tensor, rows: Tensor, corner_weights: Tensor, size: int) -> Tensor:
    ordered, order = rows.flatten().to(torch.int32 if size < 1 << 31 else torch.int64).sort()
    starts = torch.searchsorted(ordered, torch.arange(size, dtype=ordered.dtype, device=rows.device))
    users = order.div(rows.shape[1], rounding_mode="floor")
    return functional.embedding_bag(
        users, gradient.contiguous(), starts, per_sample_weights=corner_weights.flatten()[order], mode="sum"
    )


def _weights_gradient(gradient: Tensor, table: Tensor, rows: Tensor, corner_weights: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = corner_weights.detach().requires_grad_()
        sums = functional.embedding_bag(rows, table.detach(), per_sample_weights=leaf, mode="sum")
        (result,) = torch.autograd.grad(sums, leaf, gradient)
    return result


def _bilinear(shapes: Shapes, locations: Tensor, weights: Tensor) -> tuple[Int[Tensor, "B Q M S"], Tensor]:
    """Tokens at the four corners of every location and their weights, S = 4 x L x P; weight 0 outside."""
    sizes = _sizes(locations, shapes)
    width, height = sizes[:, 0, None], sizes[:, 1, None]
    # Summed here: torch has no deterministic cumsum of floats on a GPU.
    *starts, _ = accumulate((height * width for height, width in shapes), initial=0)
    start = _numbers(locations, starts)[:, None]
    x, y = _to_pixels(locations[..., 0], width), _to_pixels(locations[..., 1], height)
    x0, y0 = x.detach().floor(), y.detach().floor()
    left, right = _corner_weights(x, x0, width)
    top, bottom = (weight * weights for weight in _corner_weights(y, y0, height))
    # Indices stay floating point until the end (exact below 2^24 tokens), where the arithmetic is vectorised.
    x0, x1 = _inside(x0, width), _inside(x0 + 1, width)
    upper, lower = _inside(y0, height) * width + start, _inside(y0 + 1, height) * width + start
    corners = torch.stack((upper + x0, upper + x1, lower + x0, lower + x1), dim=3)
    corner_weights = torch.stack((top * left, top * right, bottom * left, bottom * right), dim=3)
    return corners.flatten(3).long(), corner_weights.flatten(3)


def _to_pixels(location: Tensor, size: Tensor) -> Tensor:
    """Relative coordinates to pixel coordinates; NaN and what is far outside go to a place just outside."""
    # Pixel centres are at half numbers. -2 and size + 1 have no corner inside, and keep indices small: a far location
    # would overflow them.
    pixel = torch.nan_to_num(location * size - 0.5, nan=-2.0)
    return pixel.clamp(min=-2.0).minimum(size + 1)


def _corner_weights(position: Tensor, low: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    high_weight = position - low
    low_inside = (low >= 0) & (low < size)
    high_inside = (low >= -1) & (low < size - 1)
    return (1 - high_weight) * low_inside, high_weight * high_inside


def _inside(index: Tensor, size: Tensor) -> Tensor:
    return index.clamp(min=0).minimum(size - 1)
