"""Calls that the op refuses, also below the checks in Python: the message names the argument and says what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_detr.errors import ConfigError
from sparse_detr.ops.deformable_attention import backend, deformable_attention, fused_deformable_attention

pytestmark = pytest.mark.skipif(backend() != "native", reason="the op is not compiled here")
Arguments = tuple[Any, ...]


def arguments(tokens: int = 16, heads: int = 2, channels: int = 8, points: int = 2, images: int = 2) -> Arguments:
    """value, shapes, references, offsets, logits; two levels, or one where there are not 16 tokens."""
    shapes = [3, 4, 2, 2] if tokens == 16 else [1, tokens]
    levels, queries = len(shapes) // 2, 3
    return (
        torch.ones(images, tokens, heads, channels),
        shapes,
        torch.full((images, queries, levels, 2), 0.5),
        torch.zeros(images, queries, heads, levels, points, 2),
        torch.zeros(images, queries, heads, levels, points),
    )


FUSED = {
    "value in steps": (lambda a: (a[0].transpose(1, 3), *a[1:]), "value is not contiguous; call .contiguous"),
    "value of rank 3": (lambda a: (a[0][0], *a[1:]), r"value has shape \[16, 2, 8\]; give \[B, T, M, D\]"),
    "value of integers": (lambda a: (a[0].long(), *a[1:]), "value has .*; give float32, float64, bfloat16 or float16"),
    "float16": (lambda a: (a[0].half(), *a[1:]), "float16 on the CPU; give float32 or bfloat16"),
    "no level": (lambda a: (a[0], [], *a[2:]), "shapes has 0 numbers; give height and width of every level"),
    "odd shapes": (lambda a: (a[0], [3, 4, 2], *a[2:]), "shapes has 3 numbers; give height and width"),
    "few tokens": (lambda a: (a[0], [3, 4], *a[2:]), "shapes hold 12 tokens, value holds 16"),
    "no width": (lambda a: (a[0], [3, 4, 4, 0], *a[2:]), r"4 x 0 for level 1; give 1 to 2\^24 - 1"),
    "too wide": (lambda a: (a[0], [3, 4, 1, 1 << 24], *a[2:]), r"1 x 16777216 for level 1; give 1 to 2\^24 - 1"),
    "references of 1": (
        lambda a: (*a[:2], a[2][..., :1], *a[3:]),
        r"references has shape \[2, 3, 2, 1\]; give \[B, Q, L, 2 or 4\]",
    ),
    "references of 2 queries": (
        lambda a: (*a[:2], a[2][:, :2].contiguous(), *a[3:]),
        r"references has shape \[2, 2, 2, 2\]; give \[2, 3, 2, 2\]",
    ),
    "references in float64": (lambda a: (*a[:2], a[2].double(), *a[3:]), "references has float64; give float32"),
    "offsets of rank 5": (
        lambda a: (*a[:3], a[3][..., 0].contiguous(), a[4]),
        r"offsets has shape .*; give \[B, Q, M, L, P, 2\]",
    ),
    "offsets of 2 queries": (
        lambda a: (*a[:3], a[3][:, :2].contiguous(), a[4]),
        r"references has shape .* give \[2, 2, 2, 2\]",
    ),
    "offsets in float32 beside float64": (
        lambda a: (a[0].double(), *a[1:]),
        "offsets has float32 beside a value of float64; give float64",
    ),
    "logits of 1 point": (
        lambda a: (*a[:4], a[4][..., :1].contiguous()),
        r"logits has shape .*; give \[2, 3, 2, 2, 2\]",
    ),
    "logits in steps": (lambda a: (*a[:4], a[4].transpose(3, 4)), "logits is not contiguous; call .contiguous"),
    "logits in float64": (lambda a: (*a[:4], a[4].double()), "logits has float64, offsets float32; give one type"),
}


@pytest.mark.parametrize("name", FUSED)
def test_what_the_fused_form_refuses(name: str) -> None:
    change, message = FUSED[name]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparse_detr.fused_deformable_attention(*change(arguments()))
    # The backward is an op of its own, with the same checks in front.
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparse_detr.fused_deformable_attention_backward(
            torch.ones(2, 3, 16), *change(arguments()), True, True
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w: (x[..., 0].contiguous(), w), r"locations has shape .*; give \[B, Q, M, L, P, 2\]"),
        (lambda x, w: (x.bfloat16(), w.bfloat16()), "locations has bfloat16 beside a value of float32; give float32"),
        (lambda x, w: (x, w[:, :1].contiguous()), r"weights has shape .*; give \[2, 3, 2, 2, 2\]"),
        (lambda x, w: (x, w.double()), "weights has float64, locations float32; give one type"),
    ],
)
def test_what_the_unfused_form_refuses(change: Callable[..., tuple[Tensor, Tensor]], message: str) -> None:
    value, shapes, _, *samples = arguments()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparse_detr.deformable_attention(value, shapes, *change(*samples))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparse_detr.deformable_attention_backward(
            torch.ones(2, 3, 16), value, shapes, *change(*samples), True, True
        )


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (torch.ones(2, 2, 16), r"gradient has shape \[2, 2, 16\]; give \[2, 3, 16\]"),
        (torch.ones(2, 3, 2, 8), r"gradient has shape \[2, 3, 2, 8\]; give \[2, 3, 16\]"),
        (torch.ones(2, 3, 16).double(), "gradient has float64, value float32"),
        (torch.ones(2, 3, 16).bfloat16(), "gradient has bfloat16, value float32"),
        (torch.ones(2, 16, 3).transpose(1, 2), "gradient is not contiguous; call .contiguous"),
    ],
)
def test_gradients_that_do_not_fit(gradient: Tensor, message: str) -> None:
    value, shapes, references, *samples = arguments()
    fused = torch.ops.sparse_detr.fused_deformable_attention_backward
    with pytest.raises(RuntimeError, match=message):
        fused(gradient, value, shapes, references, *samples, True, True)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparse_detr.deformable_attention_backward(gradient, value, shapes, *samples, True, True)


def test_an_image_of_less_than_two_to_the_31_numbers() -> None:
    """No images, so no memory: what is refused is the size of each."""
    largest = arguments(tokens=(1 << 15) - 1, heads=256, channels=256, points=1, images=0)
    assert torch.ops.sparse_detr.fused_deformable_attention(*largest).shape == (0, 3, 1 << 16)
    for tokens in (1 << 15, 1 << 16):
        value, shapes, *rest = arguments(tokens=tokens, heads=256, channels=256, points=1, images=0)
        message = rf"value holds {tokens << 16} numbers an image; give fewer than 2\^31"
        with pytest.raises(RuntimeError, match=message):
            torch.ops.sparse_detr.fused_deformable_attention(value, shapes, *rest)
        with pytest.raises(RuntimeError, match=message):
            torch.ops.sparse_detr.deformable_attention(value, shapes, *rest[1:])
        with pytest.raises((RuntimeError, ConfigError), match=r"value.*2\^31"):
            fused_deformable_attention(value, ((1, tokens),), *rest)


def test_at_most_4096_samples_of_a_query_and_head() -> None:
    for points in (2048, 2049):  # on two levels
        value, shapes, *rest = arguments(points=points)
        pairs = ((3, 4), (2, 2))
        if points == 2048:
            output = torch.ops.sparse_detr.fused_deformable_attention(value, shapes, *rest)
            torch.testing.assert_close(output, torch.ones_like(output))
            continue
        with pytest.raises(RuntimeError, match="4098 samples a query and head; give at most 4096"):
            torch.ops.sparse_detr.fused_deformable_attention(value, shapes, *rest)
        with pytest.raises((RuntimeError, ConfigError), match="give at most 4096"):
            fused_deformable_attention(value, pairs, *rest)


@pytest.mark.parametrize("images", [0, 2])
def test_no_level_at_all(images: int) -> None:
    samples = (torch.ones(images, 3, 2, 0, 2, 2), torch.ones(images, 3, 2, 0, 2))
    value = torch.ones(images, 0, 2, 8)
    with pytest.raises((RuntimeError, ConfigError), match=r"shapes.*give .*height.* width"):
        deformable_attention(value, (), *samples)
    with pytest.raises((RuntimeError, ConfigError), match=r"shapes.*give .*height.* width"):
        fused_deformable_attention(value, (), torch.ones(images, 3, 0, 2), *samples)


@pytest.mark.parametrize("position", [2, 3, 4])
def test_arguments_on_another_device(position: int) -> None:
    value, _, *rest = arguments()
    rest[position - 2] = rest[position - 2].to("meta")
    name = ("references", "offsets", "logits")[position - 2]
    with pytest.raises((RuntimeError, ConfigError), match=f"{name}: on meta, value on cpu; put both on one device"):
        fused_deformable_attention(value, ((3, 4), (2, 2)), *rest)


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
