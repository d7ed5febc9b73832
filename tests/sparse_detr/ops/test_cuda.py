"""The CUDA kernels: the same cases as on the CPU, against plain torch in float64; complete enough for a first run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_detr.errors import ConfigError
from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import backend, deformable_attention, fused_deformable_attention
from sparse_detr.ops.native import cuda_mismatches
from sparse_detr.ops.self_check import self_test

_spec = importlib.util.spec_from_file_location("formula", Path(__file__).with_name("formula.py"))
assert _spec is not None
assert _spec.loader is not None
formula = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(formula)

# Of the value, and of offsets and logits.
TYPES = [
    (torch.float32, torch.float32),
    *((dtype, samples) for dtype in (torch.float16, torch.bfloat16) for samples in (torch.float32, dtype)),
]
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, or torch is a build without CUDA")


@pytest.fixture(autouse=True)
def compiled(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and backend("cuda") != "native":
        pytest.fail("there is a GPU, but the CUDA part of the op does not load: see `sparse-detr doctor`")


def tensors(seed: int, shapes: Any, axes: tuple[int, ...], channels: int, size: int) -> list[Tensor]:
    """value, references, offsets, logits in float64; axes are B, Q, M, P."""
    images, queries, heads, points = axes
    generator = torch.Generator().manual_seed(seed)
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    return [
        torch.randn(images, tokens, heads, channels, generator=generator).bfloat16().double(),
        torch.rand(images, queries, levels, size, generator=generator).double(),
        torch.randn(images, queries, heads, levels, points, 2, generator=generator).double() * 2,
        torch.randn(images, queries, heads, levels, points, generator=generator).double(),
    ]


CASES = [
    (((6, 8), (3, 4)), (2, 70, 4, 4), 32, 2),
    (((6, 8), (3, 4)), (2, 5, 4, 3), 32, 4),
    (((7, 5), (1, 1), (2, 2), (3, 3), (4, 4)), (1, 11, 2, 8), 64, 4),
    (((9, 9),), (3, 33, 16, 1), 8, 2),
    (((5, 4), (2, 2)), (1, 7, 3, 2), 13, 2),
    (((5, 4),), (1, 3, 1, 1), 1, 2),
    (((5, 4),), (65, 3, 2, 2), 16, 2),
    (((5, 4),), (2, 0, 2, 2), 16, 2),
    (((5, 4),), (0, 3, 2, 2), 16, 2),
]


def leaves(tensors: list[Tensor], kinds: tuple[torch.dtype, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """On the GPU in those types, and the same numbers in float64 on the CPU."""
    ours = [tensor.to("cuda", kind).requires_grad_() for tensor, kind in zip(tensors, kinds, strict=True)]
    return ours, [leaf.detach().cpu().double().requires_grad_() for leaf in ours]


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("case", CASES)
def test_fused_equals_plain_torch(case: Any, types: tuple[torch.dtype, torch.dtype]) -> None:
    shapes, axes, channels, size = case
    value, references, *samples = tensors(3, shapes, axes, channels, size)
    ours, theirs = leaves([value, *samples], (types[0], types[1], types[1]))
    output = fused_deformable_attention(ours[0], shapes, references.to("cuda", torch.float32), ours[1], ours[2])
    plain = formula.fused if 0 in axes else reference.fused_deformable_attention  # the formula's loops take time
    exact = plain(theirs[0], shapes, references, theirs[1], theirs[2])
    formula.agree_with_gradients(output, ours, exact, theirs)


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_unfused_equals_plain_torch(case: Any, dtype: torch.dtype) -> None:
    shapes, axes, channels, size = case
    value, _, offsets, logits = tensors(3, shapes, axes, channels, size)
    ours, theirs = leaves([value, offsets / 4 + 0.5, logits], (dtype, torch.float32, torch.float32))
    output = deformable_attention(ours[0], shapes, ours[1], ours[2])
    plain = formula.attention if 0 in axes else reference.deformable_attention
    exact = plain(theirs[0], shapes, theirs[1], theirs[2])
    formula.agree_with_gradients(output, ours, exact, theirs)


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("size", [2, 4])
def test_gradient_of_the_references(size: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    shapes = ((6, 8), (3, 4))
    kinds = (types[0], torch.float32, types[1], types[1])
    ours, theirs = leaves(tensors(5, shapes, (2, 7, 4, 4), 32, size), kinds)
    output = fused_deformable_attention(ours[0], shapes, *ours[1:])
    exact = reference.fused_deformable_attention(theirs[0], shapes, *theirs[1:])
    formula.agree_with_gradients(output, ours, exact, theirs)


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("box", [False, True])
def test_offsets_to_hostile_places(box: bool, types: tuple[torch.dtype, torch.dtype]) -> None:
    case = {"shapes": ((4, 8), (1, 2), (1, 1)), "images": 2, "queries": 6, "heads": 2, "channels": 32, "points": 8}
    case |= {"box": box, "seed": 4, "places": list(formula.PLACES)}
    value, shapes, references, *samples, _ = formula.make_hostile(case, types[1])
    ours, theirs = leaves([value, *samples], (types[0], types[1], types[1]))
    output = fused_deformable_attention(ours[0], shapes, references.to("cuda", torch.float32), ours[1], ours[2])
    exact = formula.fused(theirs[0], shapes, references, theirs[1], theirs[2])
    formula.agree_with_gradients(output, ours, exact, theirs)


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_lowers_the_value_alone(dtype: torch.dtype) -> None:
    value, *rest = (t.float().cuda() for t in tensors(1, ((5, 4),), (1, 3, 2, 2), 32, 2))
    with torch.autocast("cuda", dtype=dtype):
        lowered = fused_deformable_attention(value.requires_grad_(), ((5, 4),), *rest)
    assert lowered.dtype == dtype
    assert torch.equal(lowered, fused_deformable_attention(value.to(dtype), ((5, 4),), *rest))
    lowered.float().square().sum().backward()
    assert value.grad is not None
    assert value.grad.any()


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("levels", "points", "message"),
    [(16, 6, None), (1, 96, None), (1, 97, "1 levels of 97 points"), (17, 1, "17 levels of 1 points")],
)
def test_at_most_16_levels_and_96_samples(levels: int, points: int, message: str | None) -> None:
    shapes = ((2, 3),) * levels
    ours, theirs = leaves(tensors(2, shapes, (1, 3, 2, points), 32, 2), (torch.float32,) * 4)
    if message is None:
        output = fused_deformable_attention(ours[0], shapes, *ours[1:])
        exact = reference.fused_deformable_attention(theirs[0], shapes, *theirs[1:])
        formula.agree_with_gradients(output, ours, exact, theirs)
        return
    remedy = f"{message} on CUDA; give at most 16 levels and 96 samples, or set SPARSE_DETR_OP=reference"
    with pytest.raises((RuntimeError, ConfigError), match=remedy):
        fused_deformable_attention(ours[0], shapes, *ours[1:])


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["references", "offsets", "logits"])
def test_arguments_on_another_device(name: str) -> None:
    value, *rest = (t.float().cuda() for t in tensors(1, ((5, 4),), (1, 3, 2, 2), 32, 2))
    rest = [t.cpu() if label == name else t for label, t in zip(("references", "offsets", "logits"), rest, strict=True)]
    with pytest.raises(RuntimeError, match=f"{name} is on another device than value; put both on one"):
        torch.ops.sparse_detr.fused_deformable_attention(value, [5, 4], *rest)


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("place", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9])
def test_hostile_places_contribute_nothing(place: float) -> None:
    value = torch.randn(1, 20, 2, 32, device="cuda")
    locations = torch.full((1, 5, 2, 1, 4, 2), place, device="cuda", requires_grad=True)
    output = deformable_attention(value, ((5, 4),), locations, torch.ones(1, 5, 2, 1, 4, device="cuda"))
    output.sum().backward()
    assert locations.grad is not None
    assert not output.any()
    assert not locations.grad.any()


@ON_GPU
@pytest.mark.gpu
def test_another_stream_and_a_misaligned_value() -> None:
    value, references, offsets, logits = (t.float().cuda() for t in tensors(1, ((5, 4),), (1, 3, 2, 2), 32, 2))
    storage = torch.empty(value.numel() + 1, device="cuda")
    shifted = storage[1:].view_as(value).copy_(value)
    expected = fused_deformable_attention(value, ((5, 4),), references, offsets, logits)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = fused_deformable_attention(shifted, ((5, 4),), references, offsets, logits)
    stream.synchronize()
    torch.testing.assert_close(found, expected)


@ON_GPU
@pytest.mark.gpu
def test_deterministic_algorithms_refuse_the_gradient_of_the_value() -> None:
    value, references, offsets, logits = (t.float().cuda() for t in tensors(1, ((5, 4),), (1, 3, 2, 2), 32, 2))
    torch.use_deterministic_algorithms(True)
    try:
        output = fused_deformable_attention(value.requires_grad_(), ((5, 4),), references, offsets, logits)
        with pytest.raises(RuntimeError, match="SPARSE_DETR_OP=reference"):
            output.sum().backward()
        fixed = fused_deformable_attention(value.detach(), ((5, 4),), references, offsets.requires_grad_(), logits)
        fixed.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@ON_GPU
@pytest.mark.gpu
def test_self_test_on_the_gpu() -> None:
    assert self_test("cuda") < 1e-5


@pytest.mark.parametrize(
    ("build", "devices", "message"),
    [
        ("CUDA 13.0 for sm_80 sm_90", [(9, 0)], None),
        ("CUDA 13.0 for sm_80", [(8, 6)], None),
        ("CUDA 13.0 for sm_80", [(9, 0)], "no code for sm_90"),
        ("CUDA 13.0 for sm_86", [(8, 0)], "no code for sm_80"),
        ("CUDA 13.0 for sm_80 PTX_80", [(12, 0)], None),
        ("CUDA 13.0 for sm_90 PTX_90", [(8, 0)], "no code for sm_80"),
        ("CUDA 13.0 for sm_120 PTX_120", [(12, 0), (9, 0)], "no code for sm_90"),
        ("CUDA 13.0 for sm_80 PTX", [(9, 0)], "no code for sm_90"),
        ("CUDA 13.0 for sm_90a", [(9, 0)], None),
        ("CUDA 13.0 for sm_100a PTX_100a", [(10, 3)], "no code for sm_103"),
        ("CUDA 13.0 for sm_100f PTX_100f", [(10, 3)], None),
        ("CUDA 13.0 for sm_100f PTX_100f", [(12, 0)], "no code for sm_120"),
        ("CUDA 12.8 for sm_90", [(9, 0)], "built with CUDA 12.8, torch with 13.0"),
    ],
)
def test_mismatches_are_found(build: str, devices: list[tuple[int, int]], message: str | None) -> None:
    problems = cuda_mismatches(build, "13.0", devices)
    assert (message is None) == (not problems)
    assert message is None or message in problems[0]


def test_the_sources_name_the_architectures_of_setup() -> None:
    root = Path(__file__).resolve().parents[3]
    checked = (root / "csrc" / "Makefile").read_text().split("ARCHITECTURES := ")[1].split("\n")[0].split()
    setup = (root / "setup.py").read_text().split("ARCHITECTURES = (")[1].split(")")[0]
    assert [name.strip(' "').removesuffix("+PTX").replace(".", "") for name in setup.split(",")] == checked
