"""Self-test of the op against plain torch in float64, on tensors small enough for every start of a worker."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_detr.errors import ConfigError
from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import backend, deformable_attention, fused_deformable_attention

_SHAPES = ((5, 7), (3, 2))
_BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Of the self-test, above those of the tests: it looks for kernels that do not fit, not for the last digits."""
_CASES = ((9, 2), (21, 2), (21, 4))
"""Queries, and numbers of a reference. The kernels for a CPU go another way where queries are few beside 41 tokens."""


def largest_difference(device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference of outputs and gradients, relative to the largest number of each; infinite where one is NaN.

    Args:
        device: of the op; plain torch runs on the CPU.
        dtype: of value, offsets and logits; the unfused form takes locations and weights in float32.
    """
    return max(_difference(*pair) for case in _CASES for pair in _pairs(device, dtype, *case))


def _pairs(device: torch.device, dtype: torch.dtype, queries: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Results of the op and of plain torch, fused and unfused."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 41, 2, 32, generator=generator).to(dtype)
    references = torch.rand(2, queries, 2, size, generator=generator)
    offsets = (torch.randn(2, queries, 2, 2, 3, 2, generator=generator) * 2).to(dtype)
    logits = torch.randn(2, queries, 2, 2, 3, generator=generator).to(dtype)
    locations = reference.locate(references, offsets.float(), _SHAPES)
    weights = logits.float().flatten(3).softmax(-1).view_as(logits)
    direction = torch.randn(2, queries, 64, generator=generator).to(dtype)

    def run(op: bool, fused: bool) -> list[Tensor]:
        tensors = (value, offsets, logits) if fused else (value, locations, weights)
        leaves = [(t.to(device) if op else t.double()).detach().requires_grad_() for t in tensors]
        where = references.to(device) if op else references.double()
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            if fused:
                form = fused_deformable_attention if op else reference.fused_deformable_attention
                output = form(leaves[0], _SHAPES, where, leaves[1], leaves[2])
            else:
                plain = deformable_attention if op else reference.deformable_attention
                output = plain(leaves[0], _SHAPES, leaves[1], leaves[2])
            given = direction.to(output.device, output.dtype)
            return [output.detach(), *torch.autograd.grad(output, leaves, given)]

    for fused in (True, False):
        yield from zip(run(True, fused), run(False, fused), strict=True)


def _difference(found: Tensor, exact: Tensor) -> float:
    largest = float((found.cpu().double() - exact).abs().max() / exact.abs().max())
    return math.inf if math.isnan(largest) else largest


def self_test(device: str = "cpu") -> float:
    """Run forward and backward of both forms on small tensors, in float32 and bfloat16, against plain torch in float64.

    Returns:
        The largest difference in float32, relative to the largest number of each result.

    Raises:
        ConfigError: a difference above 1e-4 (bfloat16: 5e-2): the compiled op does not fit this torch or this machine.
    """
    found = {dtype: largest_difference(torch.device(device), dtype) for dtype in _BOUNDS}
    for dtype, difference in found.items():
        if not difference < _BOUNDS[dtype]:
            raise ConfigError(
                f"deformable attention: backend {backend(device)} differs from plain torch by {difference:.1e} of the "
                f"largest number in {dtype}; reinstall sparse-detr, or set SPARSE_DETR_OP=reference"
            )
    return found[torch.float32]
