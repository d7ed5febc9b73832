"""The public deformable-attention op (Deformable DETR, equation 3): kernels in C++ and CUDA, or plain torch.

The schema and the kernels are in csrc/; here are what torch needs to know besides: shapes without data (fake),
gradients, and autocast. Under autocast the value takes the lower precision; locations, references and sums keep float32
whatever the value's type (float64 stays float64).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sparse_detr.ops import reference
from sparse_detr.ops.checks import check_fused, check_unfused
from sparse_detr.ops.native import native, native_cuda
from sparse_detr.records import Shapes

_TYPES = {"cpu": (torch.float32, torch.float64, torch.bfloat16), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


def backend(device: str = "cpu") -> str:
    """Which kernel runs on that kind of device: `native` (csrc/), or `reference`, plain torch."""
    compiled = native().loaded if device == "cpu" else device == "cuda" and native_cuda().loaded
    return "native" if compiled else "reference"


# What torch.compiler.assume_constant_result sets, without importing the compiler, which takes each process over 1 s.
backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def deformable_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention without its linear projections.

    Args:
        value: `[B, T, M, D]`, projected tokens of all levels, flattened row by row, fine to coarse.
        shapes: (height, width) of the L levels; the areas sum to T.
        locations: `[B, Q, M, L, P, 2]`, (x, y) relative to each level; outside, and NaN, contributes zero.
        weights: `[B, Q, M, L, P]`, after the softmax over L x P.

    Returns:
        `[B, Q, M x D]` in the value's type. Differentiable once, in reverse mode, in value, locations and weights.

    Raises:
        ConfigError: shapes, types or devices that do not fit together; the message names the argument.
        RuntimeError: more levels or samples than the kernels for GPUs take; a gradient of a gradient.
    """
    check_unfused(value, shapes, locations, weights)
    value = _autocast(value)
    exact = _exact(value)
    if not _runs_natively(value):
        return reference.deformable_attention(value, shapes, locations.to(exact), weights.to(exact))
    output: Tensor = torch.ops.sparse_detr.deformable_attention(
        value.contiguous(), _flat(shapes), locations.to(exact).contiguous(), weights.to(exact).contiguous()
    )
    return output


def fused_deformable_attention(
    value: Tensor, shapes: Shapes, references: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """The same with sampling locations and softmax computed inside, which saves their passes through memory.

    Args:
        value: `[B, T, M, D]`.
        shapes: (height, width) of the L levels.
        references: `[B, Q, L, 2]`, (x, y) relative to each level, or `[B, Q, L, 4]`, (cx, cy, w, h).
        offsets: `[B, Q, M, L, P, 2]`: in pixels of the level; beside (cx, cy, w, h), in half extents over P.
        logits: `[B, Q, M, L, P]`, before the softmax over L x P.

    Returns:
        `[B, Q, M x D]` in the value's type. Differentiable once in value, references, offsets and logits.

    Raises:
        ConfigError, RuntimeError: as for `deformable_attention`.
    """
    check_fused(value, shapes, references, offsets, logits)
    value = _autocast(value)
    exact = _exact(value)
    if not _runs_natively(value):
        return reference.fused_deformable_attention(
            value, shapes, references.to(exact), offsets.to(exact), logits.to(exact)
        )
    kind = value.dtype if offsets.dtype == logits.dtype == value.dtype else exact
    output: Tensor = torch.ops.sparse_detr.fused_deformable_attention(
        value.contiguous(),
        _flat(shapes),
        references.to(exact).contiguous(),
        offsets.to(kind).contiguous(),
        logits.to(kind).contiguous(),
    )
    return output


def _runs_natively(value: Tensor) -> bool:
    kind = value.device.type
    return kind in _TYPES and value.dtype in _TYPES[kind] and backend(kind) == "native"


def _exact(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _autocast(value: Tensor) -> Tensor:
    kind = value.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and value.dtype != torch.float64:
        return value.to(torch.get_autocast_dtype(kind))
    return value


def _flat(shapes: Shapes) -> list[int]:
    return [size for shape in shapes for size in shape]


def _output_fake(value: Tensor, shapes: list[int], *arguments: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], arguments[-1].shape[1], value.shape[2] * value.shape[3])


def _gradients_fake(
    gradient: Tensor, value: Tensor, shapes: list[int], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, positions, weights, for_value, for_samples = arguments
    wanted = ((value, for_value), (positions, for_samples), (weights, for_samples))
    first, second, third = (t.new_empty(t.shape if needed else (0,)) for t, needed in wanted)
    return first, second, third


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, *arguments = inputs
    ctx.save_for_backward(value, *arguments)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    needed = ctx.needs_input_grad
    _refuse_if_deterministic(value, needed[0])
    gradients = torch.ops.sparse_detr.deformable_attention_backward(
        gradient.contiguous(), value, ctx.shapes, locations, weights, needed[0], needed[2] or needed[3]
    )
    return _where_needed(needed, gradients[0], None, *gradients[1:])


def _fused_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    value, references, offsets, logits = ctx.saved_tensors
    needed = ctx.needs_input_grad
    _refuse_if_deterministic(value, needed[0])
    if needed[2]:
        found = _with_references(gradient, value, ctx.shapes, references, offsets, logits, needed[0])
        return _where_needed(needed, *found)
    for_value, for_offsets, for_logits = torch.ops.sparse_detr.fused_deformable_attention_backward(
        gradient.contiguous(), value, ctx.shapes, references, offsets, logits, needed[0], needed[3] or needed[4]
    )
    return _where_needed(needed, for_value, None, None, for_offsets, for_logits)


def _with_references(
    gradient: Tensor,
    value: Tensor,
    shapes: list[int],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    needs_value: bool,
) -> tuple[Tensor | None, ...]:
    """References get a sum over heads and points, which the kernels do not take: by way of the unfused form."""
    pairs = tuple(zip(shapes[::2], shapes[1::2], strict=True))
    exact = references.dtype
    locations = reference.locate(references, offsets.to(exact), pairs).contiguous()
    weights = logits.to(exact).flatten(3).softmax(-1).view_as(logits)
    for_value, for_locations, for_weights = torch.ops.sparse_detr.deformable_attention_backward(
        gradient.contiguous(), value, shapes, locations, weights, needs_value, True
    )
    step = reference.location_step(references, pairs, offsets.shape[4])
    for_references = for_locations.sum(dim=(2, 4))
    if references.shape[-1] == 4:
        extent = (for_locations * offsets).sum(dim=(2, 4)) * (0.5 / offsets.shape[4])
        for_references = torch.cat((for_references, extent), dim=-1)
    inner = (weights * for_weights).sum(dim=(3, 4), keepdim=True)
    for_logits = weights * (for_weights - inner)
    return for_value, None, for_references, (for_locations * step).to(offsets.dtype), for_logits.to(logits.dtype)


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "deformable attention has no second derivative: do not differentiate gradients that create_graph=True gave"
    )


def _refuse_if_deterministic(value: Tensor, needed: bool) -> None:
    if needed and value.is_cuda and torch.are_deterministic_algorithms_enabled():
        message = "deformable attention adds the value's gradient atomically on CUDA, in no fixed order"
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(f"{message}; set SPARSE_DETR_OP=reference, or do not ask for deterministic algorithms")
        warnings.warn(message, UserWarning, stacklevel=2)


def _where_needed(needed: tuple[bool, ...], *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(gradient if wanted else None for wanted, gradient in zip(needed, gradients, strict=True))


def _register() -> None:
    for name, backward in (("deformable_attention", _backward), ("fused_deformable_attention", _fused_backward)):
        torch.library.register_fake(f"sparse_detr::{name}", _output_fake)
        torch.library.register_fake(f"sparse_detr::{name}_backward", _gradients_fake)
        torch.library.register_autograd(f"sparse_detr::{name}", backward, setup_context=_setup)
        # Without this, gradients of gradients would be zeros.
        torch.library.register_autograd(f"sparse_detr::{name}_backward", _no_second_derivative)


if native().loaded:
    _register()
