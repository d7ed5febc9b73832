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
from sparse_detr.ops.deformable_attention import (
    backend,
    deformable_attention,
    fused_deformable_attention,
    self_test,
)

_spec = importlib.util.spec_from_file_location("formula", Path(__file__).with_name("formula.py"))
assert _spec is not None
assert _spec.loader is not None
formula = importlib.util.module_from_spec(_spec)
sys.modules["formula"] = formula
_spec.loader.exec_module(formula)

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(backend() != "native", reason="the op is not compiled here")
CPU_TYPES = (torch.float32, torch.float64, torch.bfloat16)
SMALL = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


def make(case: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """value, shapes, references, offsets, logits: numbers that `dtype` holds exactly, in float64."""
    generator = torch.Generator().manual_seed(case["seed"])
    shapes, images, queries, heads = case["shapes"], case["images"], case["queries"], case["heads"]
    axes = (images, queries, heads, len(shapes), case["points"])

    def numbers(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype).double()

    references = torch.rand(images, queries, len(shapes), 4 if case["box"] else 2, generator=generator).double()
    tokens = sum(h * w for h, w in shapes)
    return numbers(images, tokens, heads, case["channels"]), shapes, references, numbers(*axes, 2) * 2, numbers(*axes)


def agree(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert found.shape == exact.shape
    scale = exact.abs().max() if exact.numel() else 1.0
    difference = (found.double() - exact).abs().max() if exact.numel() else 0.0
    assert difference <= formula.TOLERANCES[dtype] * max(scale, 1e-3), f"{difference} of {scale}"


@SMALL
@given(case=cases(), dtype=st.sampled_from(CPU_TYPES))
def test_fused_equals_the_formula(isa: str, case: dict[str, Any], dtype: torch.dtype) -> None:
    value, shapes, references, offsets, logits = make(case, dtype)
    exact_type = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [value, offsets, logits]
    ours = [leaf.to(dtype if leaf is value else exact_type).requires_grad_() for leaf in leaves]
    theirs = [leaf.clone().requires_grad_() for leaf in leaves]
    output = fused_deformable_attention(ours[0], shapes, references.to(exact_type), ours[1], ours[2])
    exact = formula.fused(theirs[0], shapes, references, theirs[1], theirs[2])
    assert output.dtype == dtype
    agree(output.detach(), exact.detach(), dtype)
    direction = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if not exact.requires_grad:  # no queries: nothing depends on anything
        return
    wanted = torch.autograd.grad(exact, theirs, direction.double(), allow_unused=True)
    for found, gradient, leaf in zip(torch.autograd.grad(output, ours, direction), wanted, theirs, strict=True):
        agree(found, torch.zeros_like(leaf) if gradient is None else gradient, dtype)


@SMALL
@given(case=cases(), dtype=st.sampled_from(CPU_TYPES))
def test_unfused_equals_the_formula(isa: str, case: dict[str, Any], dtype: torch.dtype) -> None:
    value, shapes, _, offsets, logits = make(case, dtype)
    exact_type = torch.float64 if dtype == torch.float64 else torch.float32
    ours = [value.to(dtype).requires_grad_(), *(leaf.to(exact_type).requires_grad_() for leaf in (offsets / 4, logits))]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = deformable_attention(ours[0], shapes, ours[1], ours[2])
    exact = formula.attention(theirs[0], shapes, theirs[1], theirs[2])
    agree(output.detach(), exact.detach(), dtype)
    direction = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if not exact.requires_grad:
        return
    wanted = torch.autograd.grad(exact, theirs, direction.double(), allow_unused=True)
    for found, gradient, leaf in zip(torch.autograd.grad(output, ours, direction), wanted, theirs, strict=True):
        agree(found, torch.zeros_like(leaf) if gradient is None else gradient, dtype)


@pytest.mark.parametrize("queries", [3, 40])  # few: read in place; many: from a copy of each head
@pytest.mark.parametrize("dtype", CPU_TYPES)
def test_few_and_many_queries_equal_plain_torch(isa: str, queries: int, dtype: torch.dtype) -> None:
    case = {"shapes": ((6, 8), (3, 4)), "images": 2, "queries": queries, "heads": 4, "channels": 32, "points": 4}
    value, shapes, references, offsets, logits = make({**case, "box": False, "seed": 7}, dtype)
    exact_type = torch.float64 if dtype == torch.float64 else torch.float32
    ours = [value.to(dtype).requires_grad_(), *(leaf.to(exact_type).requires_grad_() for leaf in (offsets, logits))]
    theirs = [leaf.clone().requires_grad_() for leaf in (value, offsets, logits)]
    output = fused_deformable_attention(ours[0], shapes, references.to(exact_type), ours[1], ours[2])
    exact = reference.fused_deformable_attention(theirs[0], shapes, references, theirs[1], theirs[2])
    agree(output.detach(), exact.detach(), dtype)
    direction = torch.randn(exact.shape).to(dtype)
    wanted = torch.autograd.grad(exact, theirs, direction.double())
    for found, gradient in zip(torch.autograd.grad(output, ours, direction), wanted, strict=True):
        agree(found, gradient, dtype)


# On a level of 4 x 8 cells: these numbers are exact in every type.
PLACES = {
    "corners": [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)],
    "centres": [(0.0625, 0.125), (0.5625, 0.625), (0.9375, 0.875)],
    "one cell outside": [(-0.0625, 0.5), (1.0625, 0.5), (0.5, -0.125), (0.5, 1.125)],
    "far outside": [(1e9, 0.5), (-1e9, -1e9), (0.5, 3e38), (-3e38, 0.5)],
    "not finite": [(float("nan"), 0.5), (0.5, float("inf")), (-float("inf"), float("nan"))],
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hostile_places(isa: str, kind: str, dtype: torch.dtype) -> None:
    places = torch.tensor(PLACES[kind], dtype=dtype)
    value = torch.randn(1, 32, 1, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    locations = places.view(1, 1, 1, 1, -1, 2).clone().requires_grad_()
    weights = torch.ones(1, 1, 1, 1, len(places), dtype=dtype)
    output = deformable_attention(value, ((4, 8),), locations, weights)
    agree(output.detach(), formula.attention(value.double(), ((4, 8),), locations.detach().double(), weights), dtype)
    output.sum().backward()
    assert locations.grad is not None
    assert locations.grad.isfinite().all()
    if kind not in ("corners", "centres"):
        assert not output.any()
    if kind in ("far outside", "not finite"):
        assert not locations.grad.any()


def test_gradients_equal_finite_differences() -> None:
    case = {"shapes": ((3, 4), (2, 2)), "images": 1, "queries": 2, "heads": 2, "channels": 8, "points": 2, "seed": 3}
    for box in (False, True):
        value, shapes, references, offsets, logits = make({**case, "box": box})
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
            value, shapes, *rest = make({**case, "queries": queries})
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
    value, shapes, *rest = make({**case, "box": False, "seed": 11})
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
    plain = [t.detach() if isinstance(t, Tensor) else t for t in (value, flat, references, offsets, logits)]
    gradient = torch.randn(2, 3, 16)
    backward = torch.ops.sparse_detr.fused_deformable_attention_backward.default
    for wanted in ((True, True), (True, False), (False, True)):
        opcheck(backward, (gradient, *plain, *wanted))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: (a[0].transpose(1, 3), *a[1:]), "value is not contiguous"),
        (lambda a: (a[0], [3, 4], *a[2:]), "shapes hold 12 tokens, value holds 16"),
        (lambda a: (a[0], [3, 4, 2], *a[2:]), "shapes has 3 numbers"),
        (lambda a: (a[0], [3, 4, 4, 0], *a[2:]), "4 x 0 for level 1"),
        (lambda a: (*a[:2], a[2][..., :1], *a[3:]), r"references has shape \[2, 3, 2, 1\]; give \[B, Q, L, 2 or 4\]"),
        (lambda a: (*a[:3], a[3][:, :2].contiguous(), a[4]), r"references has shape .* give \[2, 2, 2, 2\]"),
        (lambda a: (*a[:4], a[4][..., :1].contiguous()), r"logits has shape .*; give \[2, 3, 2, 2, 2\]"),
        (lambda a: (*a[:4], a[4].double()), "logits has float64, offsets float32"),
        (lambda a: (a[0].half(), *a[1:]), "float16 on the CPU"),
        (lambda a: (a[0].double(), *a[1:]), "offsets has float32 beside a value of float64; give float64"),
    ],
)
def test_what_the_schema_refuses(change: Any, message: str) -> None:
    arguments = [t.detach() if isinstance(t, Tensor) else t for t in _raw()]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparse_detr.fused_deformable_attention(*change(arguments))


def test_self_test_passes_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert self_test() < 1e-5
    from sparse_detr.errors import ConfigError
    from sparse_detr.ops import self_test as module

    right = module.fused_deformable_attention
    monkeypatch.setattr(module, "fused_deformable_attention", lambda *arguments: right(*arguments) * 1.01)
    with pytest.raises(ConfigError, match="differs from plain torch by"):
        self_test()
