"""The self-test sees what it is there for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_detr.errors import ConfigError
from sparse_detr.ops import self_check as module
from sparse_detr.ops.self_check import self_test


def broken(call: Callable[..., Tensor], factor: float, wrong: Callable[..., bool]) -> Callable[..., Tensor]:
    """The op with its result multiplied where `wrong` says so of its arguments."""

    @functools.wraps(call)
    def run(*arguments: Any) -> Tensor:
        return call(*arguments) * (factor if wrong(*arguments) else 1)

    return run


@pytest.mark.parametrize("factor", [1.1, float("nan"), float("inf")])
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


def test_the_right_kernel_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert self_test() < 1e-5
    right = module.fused_deformable_attention
    monkeypatch.setattr(module, "fused_deformable_attention", lambda *arguments: right(*arguments) * 1.01)
    with pytest.raises(ConfigError, match="differs from plain torch by"):
        self_test()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_torch_passes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_detr.ops import reference

    for name in ("deformable_attention", "fused_deformable_attention"):
        monkeypatch.setattr(module, name, getattr(reference, name))
    assert module.largest_difference(torch.device("cpu"), dtype) < (1e-5 if dtype == torch.float32 else 2e-2)
