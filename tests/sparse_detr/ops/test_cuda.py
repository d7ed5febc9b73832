"""The CUDA kernels: the same cases as on the CPU, against plain torch in float64; complete enough for a first run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import (
    backend,
    deformable_attention,
    fused_deformable_attention,
    self_test,
)
from sparse_detr.ops.native import cuda_mismatches

TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
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


def agree(found: Tensor, exact: Tensor, tolerance: float) -> None:
    assert found.shape == exact.shape
    if exact.numel():
        assert (found.cpu().double() - exact).abs().max() <= tolerance * max(float(exact.abs().max()), 1e-3)


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


@ON_GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["fused", "unfused"])
def test_equals_plain_torch(form: str, case: Any, dtype: torch.dtype) -> None:
    shapes, axes, channels, size = case
    value, references, *samples = tensors(3, shapes, axes, channels, size)
    if form == "unfused":
        samples = [samples[0] / 4 + 0.5, samples[1]]
    # Rounded first, so that both sides compute with the same numbers.
    samples = [sample.float().double() for sample in samples]
    references = references.float().double()
    ours = [value.to("cuda", dtype), *(sample.to("cuda", torch.float32) for sample in samples)]
    ours = [leaf.requires_grad_() for leaf in ours]
    theirs = [leaf.clone().requires_grad_() for leaf in (value, *samples)]
    if form == "fused":
        output = fused_deformable_attention(ours[0], shapes, references.to("cuda", torch.float32), ours[1], ours[2])
        exact = reference.fused_deformable_attention(theirs[0], shapes, references, theirs[1], theirs[2])
    else:
        output = deformable_attention(ours[0], shapes, ours[1], ours[2])
        exact = reference.deformable_attention(theirs[0], shapes, theirs[1], theirs[2])
    agree(output.detach(), exact.detach(), TOLERANCES[dtype])
    direction = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = torch.autograd.grad(exact, theirs, direction.double())
    for found, gradient in zip(torch.autograd.grad(output, ours, direction.cuda()), wanted, strict=True):
        agree(found, gradient, TOLERANCES[dtype])


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
        ("CUDA 13.0 for sm_80 PTX", [(12, 0)], None),
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
