"""The op against plain torch in float64, on tensors small enough for every start of a worker."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import deformable_attention, fused_deformable_attention

_SHAPES = ((5, 7), (3, 2))


def largest_difference(device: torch.device) -> float:
    """Largest difference of outputs and gradients of both forms, relative to the largest number of each."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 41, 2, 32, generator=generator)
    references = torch.rand(2, 9, 2, 2, generator=generator)
    offsets = torch.randn(2, 9, 2, 2, 3, 2, generator=generator) * 2
    logits = torch.randn(2, 9, 2, 2, 3, generator=generator)
    locations = reference.locate(references, offsets, _SHAPES)
    weights = logits.flatten(3).softmax(-1).view_as(logits)
    direction = torch.randn(2, 9, 64, generator=generator)
    found = [_results(device, torch.float32, direction, (value, offsets, logits), references)]
    found.append(_results(device, torch.float32, direction, (value, locations, weights), None))
    exact = [_results(None, torch.float64, direction, (value, offsets, logits), references)]
    exact.append(_results(None, torch.float64, direction, (value, locations, weights), None))
    pairs = [pair for ours, theirs in zip(found, exact, strict=True) for pair in zip(ours, theirs, strict=True)]
    return max(float((a.cpu().double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def _results(
    device: torch.device | None,
    dtype: torch.dtype,
    direction: Tensor,
    arguments: tuple[Tensor, Tensor, Tensor],
    references: Tensor | None,
) -> list[Tensor]:
    """Output and gradients; of plain torch where no device is given."""
    place = torch.device("cpu") if device is None else device
    leaves = [tensor.to(place, dtype).requires_grad_() for tensor in arguments]
    with torch.enable_grad(), torch.autocast(place.type, enabled=False):
        if references is None:
            unfused = reference.deformable_attention if device is None else deformable_attention
            output = unfused(leaves[0], _SHAPES, leaves[1], leaves[2])
        else:
            fused = reference.fused_deformable_attention if device is None else fused_deformable_attention
            output = fused(leaves[0], _SHAPES, references.to(place, dtype), leaves[1], leaves[2])
        gradients = torch.autograd.grad(output, leaves, direction.to(place, dtype))
    return [output.detach(), *gradients]
