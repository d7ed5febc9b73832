"""The op written down from its formula, in float64 and with Python's loops: what the kernels are held against.

Also inputs to compare on, and the comparison.

Deformable DETR, equation 3, with bilinear sampling of cells whose centres are at (i + 0.5) / size; what lies outside a
level is zero. Gradients come from autograd on plain indexing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Largest difference allowed, relative to the largest number of the result, by the result's type.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def attention(value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """`[B, Q, M x D]`."""
    images, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    rows = []
    for b in range(images):
        for q in range(queries):
            for m in range(heads):
                total, start = value.new_zeros(channels), 0
                for level, (height, width) in enumerate(shapes):
                    cells = value[b, start : start + height * width, m].reshape(height, width, channels)
                    for p in range(points):
                        x = locations[b, q, m, level, p, 0] * width - 0.5
                        y = locations[b, q, m, level, p, 1] * height - 0.5
                        total = total + weights[b, q, m, level, p] * bilinear(cells, x, y)
                    start += height * width
                rows.append(total)
    if not rows:
        return value.new_zeros(images, queries, heads * channels)
    return torch.stack(rows).view(images, queries, heads * channels)


def bilinear(cells: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """One sample of `[H, W, D]` at a position in cells."""
    height, width, channels = cells.shape
    total = cells.new_zeros(channels)
    place_x, place_y = float(x.detach()), float(y.detach())
    if not (math.isfinite(place_x) and math.isfinite(place_y)):
        return total
    left, top = math.floor(place_x), math.floor(place_y)
    for column in (left, left + 1):
        for row in (top, top + 1):
            if 0 <= column < width and 0 <= row < height:
                # Written so that the derivative at a cell's centre is that of the cell to its right or below.
                x_share = 1 - (x - column) if column == left else x - left
                y_share = 1 - (y - row) if row == top else y - top
                total = total + x_share * y_share * cells[row, column]
    return total


def fused(
    value: Tensor, shapes: tuple[tuple[int, int], ...], references: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """From reference points or boxes, raw offsets and logits (appendix A.3 and A.4)."""
    points = offsets.shape[4]
    locations = []
    for level, (height, width) in enumerate(shapes):
        reference = references[:, :, None, level, None]
        step = reference.new_tensor([1 / width, 1 / height])
        if references.shape[-1] == 4:
            step = reference[..., 2:] * 0.5 / points
        locations.append(reference[..., :2] + offsets[:, :, :, level] * step)
    exponentials = logits.exp()
    weights = exponentials / exponentials.sum(dim=(3, 4), keepdim=True)
    return attention(value, shapes, torch.stack(locations, dim=3), weights)


# Places on an axis of a level, in cells, as (share of the size, shift): 0 is the centre of the first cell.
PLACES = {
    "first centre": (0.0, 0.0),
    "last centre": (1.0, -1.0),
    "first edge": (0.0, -0.5),
    "last edge": (1.0, -0.5),
    "one pixel before": (0.0, -1.0),
    "one pixel after": (1.0, 0.0),
    "location -1 / size": (0.0, -1.5),
    "location 1 + 1 / size": (1.0, 0.5),
    "inside": (0.5, -0.25),
    "far before": (0.0, -1e30),
    "far after": (0.0, 1e30),
    "NaN": (0.0, math.nan),
    "infinite": (0.0, math.inf),
    "minus infinite": (0.0, -math.inf),
}


def make(case: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """value, shapes, references, offsets, logits: numbers that `dtype` (references: float32) holds, in float64."""
    generator = torch.Generator().manual_seed(case["seed"])
    shapes, images, queries, heads = case["shapes"], case["images"], case["queries"], case["heads"]
    axes = (images, queries, heads, len(shapes), case["points"])

    def numbers(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype).double()

    references = torch.rand(images, queries, len(shapes), 4 if case["box"] else 2, generator=generator).double()
    tokens = sum(h * w for h, w in shapes)
    return numbers(images, tokens, heads, case["channels"]), shapes, references, numbers(*axes, 2) * 2, numbers(*axes)


def make_hostile(case: dict[str, Any], dtype: torch.dtype) -> tuple[Any, ...]:
    """value, shapes, references, offsets, logits, locations: offsets and locations lead to the case's `places`.

    Sizes and points have to be powers of two: then places are exact in every type, however they are computed.
    """
    value, shapes, references, offsets, logits = make(case, dtype)
    generator = torch.Generator().manual_seed(case["seed"])
    chosen = torch.tensor([PLACES[name] for name in case["places"]], dtype=torch.float64)
    share, shift = chosen[torch.randint(len(chosen), offsets.shape, generator=generator)].unbind(-1)
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float64)[:, None]
    cells = share * sizes + shift
    centres = torch.randint(9, references[..., :2].shape, generator=generator).double() / 8
    extents = 0.5 ** torch.randint(3, centres.shape, generator=generator)
    step = torch.ones_like(sizes)
    if case["box"]:
        step = extents[:, :, None, :, None] * sizes * 0.5 / case["points"]
    references = torch.cat((centres, extents), dim=-1) if case["box"] else centres
    offsets = (cells + 0.5 - centres[:, :, None, :, None] * sizes) / step
    return value, shapes, references, offsets.to(dtype).double(), logits, (cells + 0.5) / sizes


def agree(found: Tensor, exact: Tensor, least: float = 1e-3) -> None:
    """Fails unless they are equal within the tolerance of the type of `found`, times the largest number or `least`."""
    assert found.shape == exact.shape
    scale = max(least, float(exact.detach().abs().max())) if exact.numel() else least
    difference = float((found.detach().cpu().double() - exact.detach()).abs().max()) if exact.numel() else 0.0
    assert difference <= TOLERANCES[found.dtype] * scale, f"{difference} of {scale} in {found.dtype}"


def agree_with_gradients(output: Tensor, ours: Sequence[Tensor], exact: Tensor, theirs: Sequence[Tensor]) -> None:
    """The same for an output and the gradients of its inputs, in a direction that the output's type holds."""
    # Sums of products of numbers around 1: where they come to nothing, rounding is left, of the formula too. Plain
    # torch in float32 is off by 1.1e-7 where weights of up to 0.9 have a sum of 0.01.
    agree(output, exact, least=0.1)
    direction = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    wanted: Sequence[Tensor | None] = [None] * len(theirs)
    if exact.requires_grad:  # otherwise there are no queries, and nothing depends on anything
        wanted = torch.autograd.grad(exact, theirs, direction.double(), allow_unused=True)
    gradients = torch.autograd.grad(output, ours, direction.to(output.device))
    for found, gradient, leaf in zip(gradients, wanted, theirs, strict=True):
        agree(found, torch.zeros_like(leaf) if gradient is None else gradient, least=0.1)
