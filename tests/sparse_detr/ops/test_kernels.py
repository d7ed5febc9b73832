"""The compiled kernels against the formula: random shapes and types, hostile places, gradients, threads, graphs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import backend, deformable_attention, fused_deformable_attention

_spec = importlib.util.spec_from_file_location("formula", Path(__file__).with_name("formula.py"))
assert _spec is not None
assert _spec.loader is not None
formula = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(formula)

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(backend() != "native", reason="the op is not compiled here")
CPU_TYPES = (torch.float32, torch.float64, torch.bfloat16)
# Of the value, and of offsets and logits.
FUSED_TYPES = [*((dtype, dtype) for dtype in CPU_TYPES), (torch.bfloat16, torch.float32)]
SMALL = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def exact_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "shapes": tuple(draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5))),
        "images": draw(st.integers(0, 2)),
        "queries": draw(st.sampled_from([0, 1, 2, 3])),
        "heads": draw(st.sampled_from([1, 2, 3, 16])),
        "channels": draw(st.sampled_from([8, 16, 24, 32, 36, 64])),
        "points": draw(st.integers(1, 8)),
        "box": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@SMALL
@given(case=cases(), types=st.sampled_from(FUSED_TYPES))
def test_fused_equals_the_formula(isa: str, case: dict[str, Any], types: tuple[torch.dtype, torch.dtype]) -> None:
    dtype, sample_type = types
    value, shapes, references, offsets, logits = formula.make(case, dtype)
    ours = [value.to(dtype).requires_grad_(), *(leaf.to(sample_type).requires_grad_() for leaf in (offsets, logits))]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = fused_deformable_attention(ours[0], shapes, references.to(exact_type(dtype)), ours[1], ours[2])
    assert output.dtype == dtype
    exact = formula.fused(theirs[0], shapes, references, theirs[1], theirs[2])
    formula.agree_with_gradients(output, ours, exact, theirs)


@SMALL
@given(case=cases(), dtype=st.sampled_from(CPU_TYPES))
def test_unfused_equals_the_formula(isa: str, case: dict[str, Any], dtype: torch.dtype) -> None:
    value, shapes, _, *samples = formula.make(case, dtype)
    samples = [leaf.to(exact_type(dtype)).requires_grad_() for leaf in (samples[0] / 4, samples[1])]
    ours = [value.to(dtype).requires_grad_(), *samples]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = deformable_attention(ours[0], shapes, ours[1], ours[2])
    assert output.dtype == dtype
    formula.agree_with_gradients(output, ours, formula.attention(theirs[0], shapes, theirs[1], theirs[2]), theirs)


# 16 samples: whole vectors of each instruction set.
@pytest.mark.parametrize("queries", [3, 40])  # few: read in place; many: from a copy of each head
@pytest.mark.parametrize("types", FUSED_TYPES)
def test_few_and_many_queries_equal_plain_torch(isa: str, queries: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    dtype, sample_type = types
    case = {"shapes": ((6, 8), (3, 4)), "images": 2, "queries": queries, "heads": 4, "channels": 32, "points": 8}
    value, shapes, references, offsets, logits = formula.make({**case, "box": False, "seed": 7}, dtype)
    ours = [value.to(dtype).requires_grad_(), *(leaf.to(sample_type).requires_grad_() for leaf in (offsets, logits))]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = fused_deformable_attention(ours[0], shapes, references.to(exact_type(dtype)), ours[1], ours[2])
    exact = reference.fused_deformable_attention(theirs[0], shapes, references, theirs[1], theirs[2])
    formula.agree_with_gradients(output, ours, exact, theirs)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("types", FUSED_TYPES)
def test_gradient_of_the_references(size: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    dtype, sample_type = types
    case = {"shapes": ((4, 5), (2, 2)), "images": 2, "queries": 3, "heads": 2, "channels": 16, "points": 4, "seed": 9}
    value, shapes, references, offsets, logits = formula.make({**case, "box": size == 4}, dtype)
    kinds = (dtype, exact_type(dtype), sample_type, sample_type)
    leaves = zip((value, references, offsets, logits), kinds, strict=True)
    ours = [leaf.to(kind).requires_grad_() for leaf, kind in leaves]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = fused_deformable_attention(ours[0], shapes, *ours[1:])
    formula.agree_with_gradients(output, ours, formula.fused(theirs[0], shapes, *theirs[1:]), theirs)


def test_gradients_equal_finite_differences() -> None:
    case = {"shapes": ((3, 4), (2, 2)), "images": 1, "queries": 2, "heads": 2, "channels": 8, "points": 2, "seed": 3}
    for box in (False, True):
        value, shapes, references, offsets, logits = formula.make({**case, "box": box})
        inputs = tuple(leaf.requires_grad_() for leaf in (value, references, offsets, logits))
        assert torch.autograd.gradcheck(
            lambda v, r, o, w, s=shapes: fused_deformable_attention(v, s, r, o, w), inputs, nondet_tol=0.0
        )


def test_recorded_module(shared: Path) -> None:
    """The values of core.npz through the fused form, from its own locations and weights turned back."""
    core = np.load(shared / "golden" / "core.npz")
    shapes = tuple((int(h), int(w)) for h, w in core["core_shapes"])
    value, locations, weights = (torch.from_numpy(core[f"core_{name}"]).double() for name in ("value", "loc", "attn"))
    images, queries, _, levels, _, _ = locations.shape
    sizes = torch.tensor([(w, h) for h, w in shapes])[:, None]
    output = fused_deformable_attention(
        value, shapes, torch.zeros(images, queries, levels, 2).double(), locations * sizes, weights.log()
    )
    total = weights.sum(dim=(3, 4))  # recorded weights need not add up to one
    per_head = output.unflatten(-1, (value.shape[2], -1)) * total[..., None]
    torch.testing.assert_close(per_head.flatten(2), torch.from_numpy(core["core_out_f64"]), rtol=1e-10, atol=1e-10)


def test_threads_give_equal_bits() -> None:
    case = {"shapes": ((9, 8), (4, 4)), "images": 2, "heads": 4, "channels": 32, "points": 4, "box": False, "seed": 5}
    before = torch.get_num_threads()
    try:
        for queries, dtype in ((5, torch.float32), (90, torch.float32), (5, torch.bfloat16), (90, torch.bfloat16)):
            value, shapes, *rest = formula.make({**case, "queries": queries})
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                leaves = [value.to(dtype).requires_grad_(), *(t.float().requires_grad_() for t in rest[1:])]
                output = fused_deformable_attention(leaves[0], shapes, rest[0].float(), leaves[1], leaves[2])
                results.append([output.detach(), *torch.autograd.grad(output.float().square().sum(), leaves)])
            for others in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))
    finally:
        torch.set_num_threads(before)


def _raw(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    case = {"shapes": ((3, 4), (2, 2)), "images": 2, "queries": 3, "heads": 2, "channels": 8, "points": 2}
    value, shapes, *rest = formula.make({**case, "box": False, "seed": 11})
    flat = [size for shape in shapes for size in shape]
    return (
        value.to(dtype).requires_grad_(),
        flat,
        rest[0].to(dtype),
        *(t.to(dtype).requires_grad_() for t in rest[1:]),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_opcheck() -> None:
    value, flat, references, offsets, logits = _raw()
    weights = logits.detach().flatten(3).softmax(-1).view_as(logits).requires_grad_()
    opcheck(torch.ops.sparse_detr.fused_deformable_attention.default, (value, flat, references, offsets, logits))
    opcheck(torch.ops.sparse_detr.deformable_attention.default, (value, flat, offsets, weights))
    value, references, offsets, logits, weights = (
        tensor.detach() for tensor in (value, references, offsets, logits, weights)
    )
    for wanted in ((True, True), (True, False), (False, True)):
        gradient = torch.randn(2, 3, 16)
        backward = torch.ops.sparse_detr.fused_deformable_attention_backward.default
        opcheck(backward, (gradient, value, flat, references, offsets, logits, *wanted))
        backward = torch.ops.sparse_detr.deformable_attention_backward.default
        opcheck(backward, (gradient, value, flat, offsets, weights, *wanted))


@pytest.mark.slow
def test_one_graph_for_several_image_sizes() -> None:
    """In a process of its own: dynamo does not trace the checks that jaxtyping and beartype put in for the tests."""
    script = Path(__file__).with_name("one_graph.py")
    done = subprocess.run((sys.executable, str(script)), cwd=ROOT, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 graph for 3 image sizes" in done.stdout


def test_autocast_lowers_the_value_alone() -> None:
    value, flat, references, offsets, logits = (t.detach() if isinstance(t, Tensor) else t for t in _raw())
    shapes = tuple(zip(flat[::2], flat[1::2], strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = fused_deformable_attention(value, shapes, references, offsets, logits)
    expected = fused_deformable_attention(value.bfloat16(), shapes, references, offsets, logits)
    assert lowered.dtype == torch.bfloat16
    assert torch.equal(lowered, expected)
