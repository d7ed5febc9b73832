"""Arguments of the op that do not fit together, said in the caller's words before a kernel is chosen."""

from __future__ import annotations

from torch import Tensor

from sparse_detr.errors import ConfigError
from sparse_detr.records import Shapes

MOST_TOKENS = 1 << 24
"""Tokens an image must stay below: plain torch computes their numbers in float32."""
MOST_SAMPLES = 4096
"""Samples of a query and head, L x P."""


def check_unfused(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    """Raise ConfigError unless the arguments of `deformable_attention` fit together."""
    _check_samples(value, shapes, ("locations", locations), ("weights", weights))


def check_fused(value: Tensor, shapes: Shapes, references: Tensor, offsets: Tensor, logits: Tensor) -> None:
    """Raise ConfigError unless the arguments of `fused_deformable_attention` fit together."""
    _check_samples(value, shapes, ("offsets", offsets), ("logits", logits))
    wanted = (value.shape[0], offsets.shape[1], len(shapes))
    if references.ndim != 4 or references.shape[:3] != wanted or references.shape[3] not in (2, 4):
        raise ConfigError(f"references: shape {tuple(references.shape)}; give {[*wanted]} x 2 or 4")
    _check_kind(value, "references", references)


def _check_samples(value: Tensor, shapes: Shapes, positions: tuple[str, Tensor], weights: tuple[str, Tensor]) -> None:
    if value.ndim != 4:
        raise ConfigError(f"value: shape {tuple(value.shape)}; give [B, T, M, D]")
    batch, tokens, heads, channels = value.shape
    if not shapes:
        raise ConfigError("shapes: no level; give (height, width) of at least one")
    total = sum(height * width for height, width in shapes)
    if total != tokens or any(height < 1 or width < 1 for height, width in shapes):
        raise ConfigError(f"shapes: {shapes} hold {total} tokens, value holds {tokens}; they must agree")
    if tokens >= MOST_TOKENS or tokens * heads * channels >= 1 << 31:
        raise ConfigError(f"value: {tokens} x {heads} x {channels} an image; give fewer than 2^24 tokens, 2^31 numbers")
    name, where = positions
    if where.ndim != 6 or where.shape[5] != 2:
        raise ConfigError(f"{name}: shape {tuple(where.shape)}; give [B, Q, M, L, P, 2]")
    for axis, letter, wanted in ((0, "B", batch), (2, "M", heads), (3, "L", len(shapes))):
        if where.shape[axis] != wanted:
            raise ConfigError(
                f"{name}: axis {axis} ({letter}) has {where.shape[axis]} entries; value and shapes have {wanted}"
            )
    if where.shape[3] * where.shape[4] > MOST_SAMPLES:
        raise ConfigError(
            f"{name}: {where.shape[3]} levels of {where.shape[4]} points; give at most {MOST_SAMPLES} samples"
        )
    if weights[1].shape != where.shape[:5]:
        raise ConfigError(f"{weights[0]}: shape {tuple(weights[1].shape)}; {name} ask for {tuple(where.shape[:5])}")
    for label, tensor in (("value", value), positions, weights):
        _check_kind(value, label, tensor)


def _check_kind(value: Tensor, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ConfigError(f"{name}: {tensor.dtype}; give a floating-point tensor")
    if tensor.device != value.device:
        raise ConfigError(f"{name}: on {tensor.device}, value on {value.device}; put both on one device")
