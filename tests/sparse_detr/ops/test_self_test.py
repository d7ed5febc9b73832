"""The self-test sees what it is there for, and gradients that the op does not have are refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_detr.errors import ConfigError
from sparse_detr.ops import self_test as module
from sparse_detr.ops.deformable_attention import backend, deformable_attention, fused_deformable_attention, self_test

NATIVE = pytest.mark.skipif(backend() != "native", reason="the compiled op is not there")


def broken(call: Callable[..., Tensor], factor: float, wrong: Callable[..., bool]) -> Callable[..., Tensor]:
    """The op with its result multiplied where `wrong` says so of its arguments."""

    @functools.wraps(call)
    def run(*arguments: Any) -> Tensor:
        return call(*arguments) * (factor if wrong(*arguments) else 1)

    return run


@pytest.mark.parametrize("factor", [1.5, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("deformable_attention", lambda value, *rest: True),
        ("fused_deformable_attention", lambda value, *rest: True),
        ("fused_deformable_attention", lambda value, *rest: value.dtype == torch.bfloat16),
        ("fused_deformable_attention", lambda value, shapes, references, *rest: references.shape[3] == 4),
        ("fused_deformable_attention", lambda value, shapes, references, *rest: references.shape[1] * 4 >= 41),
        ("fused_deformable_attention", lambda value, shapes, references, *rest: references.shape[1] * 4 < 41),
    ],
)
def test_a_wrong_kernel_is_found(
    name: str, wrong: Callable[..., bool], factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, broken(getattr(module, name), factor, wrong))
    with pytest.raises(ConfigError, match=r"differs from plain torch.*SPARSE_DETR_OP=reference"):
        self_test()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_torch_passes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_detr.ops import reference

    for name in ("deformable_attention", "fused_deformable_attention"):
        monkeypatch.setattr(module, name, getattr(reference, name))
    assert module.largest_difference(torch.device("cpu"), dtype) < (1e-5 if dtype == torch.float32 else 2e-2)


@NATIVE
@pytest.mark.parametrize("fused", [True, False])
def test_a_gradient_of_a_gradient_is_refused(fused: bool) -> None:
    value = torch.randn(1, 12, 2, 8, requires_grad=True)
    places, weights = torch.rand(1, 3, 2, 1, 2, 2, requires_grad=True), torch.rand(1, 3, 2, 1, 2, requires_grad=True)
    references = torch.rand(1, 3, 1, 2)
    if fused:
        output = fused_deformable_attention(value, ((3, 4),), references, places, weights)
    else:
        output = deformable_attention(value, ((3, 4),), places, weights)
    gradients = torch.autograd.grad(output.square().sum(), (value, places, weights), create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(torch.stack([gradient.square().sum() for gradient in gradients]).sum(), value)


@pytest.mark.parametrize(
    ("tokens", "heads", "channels", "samples", "message"),
    [
        (1 << 24, 1, 1, 1, r"value: 16777216 x 1 x 1 .* fewer than 2\^24 tokens"),
        (1 << 16, 1 << 8, 1 << 8, 1, r"value: 65536 x 256 x 256 .* 2\^31 numbers"),
        (4, 1, 8, 4097, "1 levels of 4097 points; give at most 4096 samples"),
    ],
)
def test_what_is_too_large_is_refused(tokens: int, heads: int, channels: int, samples: int, message: str) -> None:
    value = torch.empty(0, tokens, heads, channels)
    places, weights = torch.empty(0, 1, heads, 1, samples, 2), torch.empty(0, 1, heads, 1, samples)
    with pytest.raises(ConfigError, match=message):
        deformable_attention(value, ((tokens, 1),), places, weights)


def test_no_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="shapes: no level"):
        deformable_attention(torch.empty(1, 0, 1, 8), (), torch.empty(1, 1, 1, 0, 1, 2), torch.empty(1, 1, 1, 0, 1))


@pytest.mark.parametrize(("images", "queries"), [(2, 0), (0, 3), (0, 0)])
def test_plain_torch_takes_no_queries_and_no_images(images: int, queries: int) -> None:
    from sparse_detr.ops import reference

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
