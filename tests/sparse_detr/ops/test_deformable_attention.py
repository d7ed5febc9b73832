"""The op and its reference: recorded values and gradients, an independent form, hostile locations, bad arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sparse_detr.errors import ConfigError
from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import backend, deformable_attention

SHAPES = ((6, 8), (3, 4))
TOKENS = 60


@pytest.fixture(scope="module")
def core(shared: Path) -> Any:
    return np.load(shared / "golden" / "core.npz")


def arguments(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(2, TOKENS, 4, 8, generator=generator, dtype=dtype)
    locations = torch.rand(2, 5, 4, 2, 3, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.randn(2, 5, 4, 6, generator=generator, dtype=dtype).softmax(-1).view(2, 5, 4, 2, 3)
    return value, locations, weights


def by_grid_sample(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The usual form: one `grid_sample` a level."""
    batch, _, heads, width = value.shape
    queries = locations.shape[1]
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in SHAPES], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, width, *SHAPES[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples.append(functional.grid_sample(maps, grid, align_corners=False))
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.cat(samples, dim=-1) * shares).sum(-1)
    return output.view(batch, heads * width, queries).transpose(1, 2)


@pytest.mark.parametrize(("suffix", "tolerance"), [("f64", 1e-12), ("f32", 1e-6)])
def test_recorded_values_and_gradients(core: Any, suffix: str, tolerance: float) -> None:
    dtype = torch.float64 if suffix == "f64" else torch.float32
    inputs = [torch.from_numpy(core[f"core_{name}"]).to(dtype).requires_grad_() for name in ("value", "loc", "attn")]
    shapes = tuple(tuple(row) for row in core["core_shapes"].tolist())
    output = deformable_attention(inputs[0], shapes, inputs[1], inputs[2])
    torch.testing.assert_close(
        output, torch.from_numpy(core[f"core_out_{suffix}"]).to(dtype), atol=tolerance, rtol=tolerance
    )
    gradients = torch.autograd.grad(output, inputs, torch.from_numpy(core["core_grad_out"]).to(dtype))
    # At a cell's centre the gradient for the location jumps, and rounding decides for a side: see the next test.
    cells = inputs[1].detach() * torch.tensor([(width, height) for height, width in shapes])[:, None] - 0.5
    smooth = (cells - cells.round()).abs() > 1e-9
    assert smooth.float().mean() > 0.9
    for name, gradient, mask in zip(("gv", "gl", "ga"), gradients, (..., smooth, ...), strict=True):
        recorded = torch.from_numpy(core[f"core_{name}_{suffix}"]).to(dtype)
        torch.testing.assert_close(gradient[mask], recorded[mask], atol=20 * tolerance, rtol=20 * tolerance)


def test_recorded_gradients_at_the_centres_of_cells_are_those_of_a_side(core: Any) -> None:
    value, locations, weights = (torch.from_numpy(core[f"core_{name}"]) for name in ("value", "loc", "attn"))
    shapes = tuple(tuple(row) for row in core["core_shapes"].tolist())
    sizes = torch.tensor([(width, height) for height, width in shapes])[:, None]
    cells = locations * sizes - 0.5
    jumps = (cells - cells.round()).abs() <= 1e-9
    assert jumps.any()

    def gradient(places: Tensor) -> Tensor:
        places = places.clone().requires_grad_()
        output = deformable_attention(value, shapes, places, weights)
        return torch.autograd.grad(output, places, torch.from_numpy(core["core_grad_out"]))[0]

    sides = torch.stack([
        gradient(locations + 1e-8 * jumps * torch.tensor([x, y])) for x in (-1.0, 1.0) for y in (-1.0, 1.0)
    ])  # fmt: skip
    for found in (gradient(locations), torch.from_numpy(core["core_gl_f64"])):
        assert (sides - found).abs().amin(0)[jumps].max() < 1e-5


def test_equals_grid_sample_with_gradients() -> None:
    inputs = [tensor.requires_grad_() for tensor in arguments()]
    ours = deformable_attention(inputs[0], SHAPES, inputs[1], inputs[2])
    theirs = by_grid_sample(*inputs)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(theirs, inputs, direction), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_gradients_equal_finite_differences() -> None:
    value, locations, weights = (tensor[:1].clone().requires_grad_() for tensor in arguments(seed=3))
    assert torch.autograd.gradcheck(
        lambda v, x, w: deformable_attention(v, SHAPES, x, w), (value[..., :2], locations[:, :2], weights[:, :2])
    )


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -0.2, 1.3])
def test_locations_outside_contribute_nothing(place: float) -> None:
    value, locations, weights = arguments(torch.float32)
    expected = deformable_attention(value, SHAPES, locations, weights * torch.tensor([0.0, 1.0, 1.0]))
    locations[:, :, :, :, 0] = place
    locations.requires_grad_()
    found = deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert locations.grad is not None
    assert torch.all(locations.grad[:, :, :, :, 0] == 0)


def test_half_precision_value() -> None:
    value, locations, weights = arguments(torch.float32)
    exact = deformable_attention(value, SHAPES, locations, weights)
    rounded = deformable_attention(value.bfloat16(), SHAPES, locations, weights)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_backend_is_named() -> None:
    assert backend() in ("native", "reference")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, x, w: (v[0], SHAPES, x, w), r"value: shape .*\[B, T, M, D\]"),
        (lambda v, x, w: (v[:, 1:], SHAPES, x, w), "shapes: .*60 tokens, value holds 59"),
        (lambda v, x, w: (v, ((6, 8), (12, 1), (0, 5)), x, w), "shapes"),
        (lambda v, x, w: (v, SHAPES, x[..., :1], w), "locations: shape"),
        (lambda v, x, w: (v, SHAPES, x[:1], w), r"locations: axis 0 \(B\) has 1"),
        (lambda v, x, w: (v, SHAPES, x[:, :, :3], w), r"locations: axis 2 \(M\) has 3"),
        (lambda v, x, w: (v, SHAPES, x[:, :, :, :1], w), r"locations: axis 3 \(L\) has 1"),
        (lambda v, x, w: (v, SHAPES, x, w[:, :4]), "weights: shape"),
        (lambda v, x, w: (v.long(), SHAPES, x, w), "value: torch.int64"),
        (lambda v, x, w: (v, SHAPES, x.to("meta"), w), "locations: on meta"),
    ],
)
def test_arguments_that_do_not_fit(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deformable_attention(*change(*arguments()))


@pytest.mark.parametrize(("images", "queries"), [(2, 0), (0, 3), (0, 0)])
def test_plain_torch_takes_no_queries_and_no_images(images: int, queries: int) -> None:
    value = torch.randn(images, 12, 2, 8, requires_grad=True)
    offsets = torch.randn(images, queries, 2, 1, 2, 2, requires_grad=True)
    logits = torch.randn(images, queries, 2, 1, 2, requires_grad=True)
    references = torch.rand(images, queries, 1, 2)
    output = reference.fused_deformable_attention(value, ((3, 4),), references, offsets, logits)
    assert output.shape == (images, queries, 16)
    for leaf, gradient in zip(
        (value, offsets, logits), torch.autograd.grad(output.sum(), (value, offsets, logits)), strict=True
    ):
        assert gradient.shape == leaf.shape
        assert not gradient.any()
