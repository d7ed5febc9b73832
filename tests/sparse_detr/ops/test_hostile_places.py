"""Places that a trained model should not send, through the compiled kernels: their results are defined, not luck."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sparse_detr.ops.deformable_attention import backend, deformable_attention, fused_deformable_attention

_spec = importlib.util.spec_from_file_location("formula", Path(__file__).with_name("formula.py"))
assert _spec is not None
assert _spec.loader is not None
formula = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(formula)

pytestmark = pytest.mark.skipif(backend() != "native", reason="the op is not compiled here")
SMALL = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NOT_FINITE = {"NaN", "infinite", "minus infinite"}
# Of the value, and of offsets and logits.
TYPES = [*((dtype, dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)), (torch.bfloat16, torch.float32)]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    sizes = st.sampled_from([1, 2, 4, 8])
    return {
        "shapes": tuple(draw(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=3))),
        "images": draw(st.integers(1, 2)),
        "queries": draw(st.integers(1, 2)),
        "heads": draw(st.integers(1, 2)),
        "channels": draw(st.sampled_from([8, 13, 16, 32])),
        "points": draw(st.sampled_from([1, 2, 4, 8])),
        "box": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
        "places": draw(st.lists(st.sampled_from(list(formula.PLACES)), min_size=1, max_size=4, unique=True)),
    }


@SMALL
@given(case=cases(), types=st.sampled_from(TYPES))
def test_offsets_to_hostile_places(isa: str, case: dict[str, Any], types: tuple[torch.dtype, torch.dtype]) -> None:
    dtype, sample_type = types
    value, shapes, references, offsets, logits, _ = formula.make_hostile(case, dtype)
    exact_type = torch.float64 if dtype == torch.float64 else torch.float32
    ours = [value.to(dtype).requires_grad_(), *(leaf.to(sample_type).requires_grad_() for leaf in (offsets, logits))]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = fused_deformable_attention(ours[0], shapes, references.to(exact_type), ours[1], ours[2])
    exact = formula.fused(theirs[0], shapes, references, theirs[1], theirs[2])
    formula.agree_with_gradients(output, ours, exact, theirs)
    nowhere = ~offsets.isfinite().all(-1)
    (gradient,) = torch.autograd.grad(
        fused_deformable_attention(ours[0], shapes, references.to(exact_type), ours[1], ours[2]).sum(), ours[1]
    )
    assert not gradient[nowhere].any()


# Its weights nearly cancel.
CANCELLING = {"shapes": ((8, 8),), "images": 1, "queries": 1, "heads": 1, "channels": 13, "points": 8, "box": True,
              "seed": 200, "places": ["inside"]}  # fmt: skip


@SMALL
@given(case=cases(), dtype=st.sampled_from([types[1] for types in TYPES]))
@example(case=CANCELLING, dtype=torch.float32)
def test_hostile_locations(isa: str, case: dict[str, Any], dtype: torch.dtype) -> None:
    value, shapes, _, _, weights, locations = formula.make_hostile(case, dtype)
    exact_type = torch.float64 if dtype == torch.float64 else torch.float32
    ours = [value.to(dtype).requires_grad_(), *(leaf.to(exact_type).requires_grad_() for leaf in (locations, weights))]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = deformable_attention(ours[0], shapes, ours[1], ours[2])
    formula.agree_with_gradients(output, ours, formula.attention(theirs[0], shapes, theirs[1], theirs[2]), theirs)


@pytest.mark.parametrize("place", formula.PLACES)
@pytest.mark.parametrize("box", [False, True])
def test_gradient_of_the_references_of_hostile_places(place: str, box: bool) -> None:
    if box and place in NOT_FINITE:
        pytest.skip("the gradient of a box's extent is a product with the offset: not finite either, as in plain torch")
    case = {"shapes": ((4, 8), (1, 2)), "images": 1, "queries": 2, "heads": 2, "channels": 16, "points": 4, "seed": 2}
    inputs = formula.make_hostile({**case, "box": box, "places": [place, "inside"]}, torch.float32)
    value, shapes, references, offsets, logits, _ = inputs
    ours = [leaf.float().requires_grad_() for leaf in (value, references, offsets, logits)]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    output = fused_deformable_attention(ours[0], shapes, *ours[1:])
    formula.agree_with_gradients(output, ours, formula.fused(theirs[0], shapes, *theirs[1:]), theirs)


# On a level of 4 x 8 cells: these numbers are exact in every type.
FIXED = {
    "corners": [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)],
    "centres": [(0.0625, 0.125), (0.5625, 0.625), (0.9375, 0.875)],
    "one cell outside": [(-0.0625, 0.5), (1.0625, 0.5), (0.5, -0.125), (0.5, 1.125)],
    "far outside": [(1e9, 0.5), (-1e9, -1e9), (0.5, 3e38), (-3e38, 0.5)],
    "not finite": [(float("nan"), 0.5), (0.5, float("inf")), (-float("inf"), float("nan"))],
}


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_places(isa: str, kind: str, dtype: torch.dtype) -> None:
    places = torch.tensor(FIXED[kind], dtype=dtype)
    value = torch.randn(1, 32, 1, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    locations = places.view(1, 1, 1, 1, -1, 2).clone().requires_grad_()
    weights = torch.ones(1, 1, 1, 1, len(places), dtype=dtype)
    output = deformable_attention(value, ((4, 8),), locations, weights)
    formula.agree(output, formula.attention(value.double(), ((4, 8),), locations.detach().double(), weights))
    output.sum().backward()
    assert locations.grad is not None
    assert locations.grad.isfinite().all()
    if kind not in ("corners", "centres"):
        assert not output.any()
    if kind in ("far outside", "not finite"):
        assert not locations.grad.any()
