"""The op written down from its formula, in float64 and with Python's loops: what the kernels are held against.

Deformable DETR, equation 3, with bilinear sampling of cells whose centres are at (i + 0.5) / size; what lies outside a
level is zero. Gradients come from autograd on plain indexing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Largest difference allowed, relative to the largest number of the result, by the value's type.
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
