"""Compiles forward and backward of both forms for three image sizes and counts graphs; run by test_kernels.py.

Where the references need no gradient, the fused form has a backward of its own; where they do, it is the unfused one.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import deformable_attention, fused_deformable_attention

SIZES = (((6, 8), (3, 4)), ((10, 12), (5, 6)), ((9, 7), (5, 4)))


def fused(value: Tensor, shapes: Any, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return fused_deformable_attention(value, shapes, references, offsets, logits).square().sum()


def unfused(value: Tensor, shapes: Any, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    locations = reference.locate(references, offsets, shapes)
    return deformable_attention(value, shapes, locations, logits.sigmoid()).square().sum()


# Loss, numbers of a reference, whether references need a gradient, and which backward is to be found in the graph.
CASES = (
    (fused, 2, True, "deformable_attention_backward"),
    (fused, 2, False, "fused_deformable_attention_backward"),
    (fused, 4, False, "fused_deformable_attention_backward"),
    (unfused, 2, True, "deformable_attention_backward"),
)


def leaves(shapes: Any, size: int, needed: bool) -> list[Tensor]:
    """value, references, offsets, logits."""
    tokens = sum(h * w for h, w in shapes)
    value, offsets, logits = torch.randn(2, tokens, 2, 8), torch.randn(2, 5, 2, 2, 3, 2), torch.randn(2, 5, 2, 2, 3)
    references = torch.rand(2, 5, 2, size).requires_grad_(needed)
    return [value.requires_grad_(), references, offsets.requires_grad_(), logits.requires_grad_()]


def check(loss: Any, size: int, needed: bool, backward: str) -> None:
    found: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    counter = CompileCounterWithBackend(aot_autograd(fw_compiler=compiler))
    compiled = torch.compile(loss, fullgraph=True, backend=counter, dynamic=True)
    for shapes in SIZES:
        ours = leaves(shapes, size, needed)
        theirs = [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in ours]
        compiled(ours[0], shapes, *ours[1:]).backward()
        loss(theirs[0], shapes, *theirs[1:]).backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    case = f"{loss.__name__}, references of {size}, {'with' if needed else 'without'} their gradient"
    if counter.frame_count != 1:
        raise SystemExit(f"{case}: {counter.frame_count} graphs for {len(SIZES)} image sizes")
    ops = [name for name in found if name.startswith("sparse_detr.") and "backward" in name]
    if ops != [f"sparse_detr.{backward}.default"]:
        raise SystemExit(f"{case}: {ops} in the graphs, not one {backward}")


def main() -> None:
    for case in CASES:
        check(*case)
    sys.stdout.write(f"1 graph for {len(SIZES)} image sizes\n")


if __name__ == "__main__":
    main()
