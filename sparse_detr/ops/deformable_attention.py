"""The public deformable-attention op: argument checks in front of whichever kernel is there."""

from __future__ import annotations

from torch import Tensor

from sparse_detr.errors import ConfigError
from sparse_detr.ops import reference
from sparse_detr.records import Shapes


def backend() -> str:
    """Which kernel `deformable_attention` runs: `reference`, the one in plain torch."""
    return "reference"


def deformable_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3) without its linear projections.

    Args:
        value: `[B, T, M, D]`, projected tokens of all levels, flattened row by row, fine to coarse.
        shapes: (height, width) of the L levels; the areas sum to T.
        locations: `[B, Q, M, L, P, 2]`, (x, y) relative to each level; outside contributes zero.
        weights: `[B, Q, M, L, P]`, after the softmax over L x P.

    Returns:
        `[B, Q, M x D]`. Differentiable in value, locations and weights.

    Raises:
        ConfigError: shapes, types or devices that do not fit together; the message names the argument.
    """
    _check(value, shapes, locations, weights)
    return reference.deformable_attention(value, shapes, locations, weights)


def _check(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    if value.ndim != 4:
        raise ConfigError(f"value: shape {tuple(value.shape)}; give [B, T, M, D]")
    batch, tokens, heads, _ = value.shape
    total = sum(height * width for height, width in shapes)
    if total != tokens or any(height < 1 or width < 1 for height, width in shapes):
        raise ConfigError(f"shapes: {shapes} hold {total} tokens, value holds {tokens}; they must agree")
    if locations.ndim != 6 or locations.shape[5] != 2:
        raise ConfigError(f"locations: shape {tuple(locations.shape)}; give [B, Q, M, L, P, 2]")
    for axis, name, wanted in ((0, "B", batch), (2, "M", heads), (3, "L", len(shapes))):
        if locations.shape[axis] != wanted:
            raise ConfigError(
                f"locations: axis {axis} ({name}) has {locations.shape[axis]} entries; value and shapes have {wanted}"
            )
    if weights.shape != locations.shape[:5]:
        raise ConfigError(f"weights: shape {tuple(weights.shape)}; locations ask for {tuple(locations.shape[:5])}")
    for name, tensor in (("value", value), ("locations", locations), ("weights", weights)):
        if not tensor.is_floating_point():
            raise ConfigError(f"{name}: {tensor.dtype}; give a floating-point tensor")
        if tensor.device != value.device:
            raise ConfigError(f"{name}: on {tensor.device}, value on {value.device}; put both on one device")
