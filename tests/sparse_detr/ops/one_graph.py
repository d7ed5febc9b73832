"""Compiles forward and backward of both forms for three image sizes and counts graphs; run by test_kernels.py."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import deformable_attention, fused_deformable_attention

SIZES = (((6, 8), (3, 4)), ((10, 12), (5, 6)), ((9, 7), (5, 4)))


def fused(value: Tensor, shapes: Any, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return fused_deformable_attention(value, shapes, references, offsets, logits).square().sum()


def unfused(value: Tensor, shapes: Any, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    locations = reference.locate(references, offsets, shapes)
    return deformable_attention(value, shapes, locations, logits.sigmoid()).square().sum()


def main() -> None:
    for loss in (fused, unfused):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(loss, fullgraph=True, backend=counter, dynamic=True)
        for shapes in SIZES:
            tokens = sum(h * w for h, w in shapes)
            inputs = (torch.randn(2, tokens, 2, 8), torch.rand(2, 5, 2, 2), torch.randn(2, 5, 2, 2, 3, 2),
                      torch.randn(2, 5, 2, 2, 3))  # fmt: skip
            ours, theirs = ([tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2))
            compiled(ours[0], shapes, *ours[1:]).backward()
            loss(theirs[0], shapes, *theirs[1:]).backward()
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a.grad, b.grad)
        if counter.frame_count != 1:
            raise SystemExit(f"{loss.__name__}: {counter.frame_count} graphs for {len(SIZES)} image sizes")
    sys.stdout.write(f"1 graph for {len(SIZES)} image sizes\n")


if __name__ == "__main__":
    main()
