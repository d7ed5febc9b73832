"""The start of every parameter: a rule for each kind, and no parameter without a rule (as docs/models.md says)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparse_detr import BackboneConfig, ModelConfig, SparseDetr

_TINY = BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0)
_DENSE = {"keep_ratio": 1.0, "encoder_auxiliary_loss": False}
_ONE_STAGE = {**_DENSE, "query_source": "learned", "box_refinement": False, "shared_heads": True}
_CLASS_AGNOSTIC = {"query_content": "proposal", "proposal_score": "class_agnostic", "shared_heads": True}
MODELS = {
    "sparse": {"backbone": _TINY},
    "objectness": {"backbone": _TINY, "token_criterion": "objectness"},
    "two_stage": {"backbone": _TINY, **_DENSE, **_CLASS_AGNOSTIC},
    "one_stage": {"backbone": _TINY, **_ONE_STAGE},
    "detr": {"backbone": _TINY, **_ONE_STAGE, "attention": "full", "levels": 1},
    "resnet50": {"backbone": BackboneConfig(name="resnet50")},
    "swin": {"backbone": BackboneConfig(name="swin_tiny")},
}
HEADS, LEVELS, POINTS = 8, 4, 4

Check = Callable[[Tensor, Tensor], None]
"""Takes a parameter, and the weight of the same layer."""


def constant(value: float) -> Check:
    def check(found: Tensor, _: Tensor) -> None:
        torch.testing.assert_close(found, torch.full_like(found, value))

    return check


def fans(weight: Tensor) -> tuple[int, int]:
    """Numbers that go into one output and come out of one input."""
    area = math.prod(weight.shape[2:])
    return weight.shape[1] * area, weight.shape[0] * area


def uniform(found: Tensor, bound: float) -> None:
    """Within the bound, up to it, and with its mean and deviation."""
    assert found.abs().max() <= bound
    if found.numel() >= 500:
        assert found.abs().max() > 0.98 * bound
        _spread(found, bound / math.sqrt(3), kurtosis=1.8)


def normal(found: Tensor, deviation: float) -> None:
    """With the deviation, and further out than a uniform distribution of that deviation reaches."""
    assert found.abs().max() > 1.9 * deviation
    _spread(found, deviation, kurtosis=3.0)


def _spread(found: Tensor, deviation: float, kurtosis: float) -> None:
    """Mean and deviation within five standard errors."""
    count = found.numel()
    assert abs(found.mean().item()) < 5 * deviation / math.sqrt(count)
    assert abs(found.std().item() / deviation - 1) < 5 * math.sqrt((kurtosis - 1) / (4 * count)) + 1 / count


def xavier(weight: Tensor, _: Tensor) -> None:
    uniform(weight, math.sqrt(6 / sum(fans(weight))))


def of_torch(weight: Tensor, _: Tensor) -> None:
    """torch's own start of linear layers and convolutions."""
    uniform(weight, 1 / math.sqrt(fans(weight)[0]))


def he(weight: Tensor, _: Tensor) -> None:
    normal(weight, math.sqrt(2 / fans(weight)[1]))


def small_normal(weight: Tensor, _: Tensor) -> None:
    normal(weight, 0.02)


def unit_normal(weight: Tensor, _: Tensor) -> None:
    normal(weight, 1.0)


def of_torch_bias(bias: Tensor, weight: Tensor) -> None:
    """torch's own start: as wide as that of the weight. xavier, where it follows, leaves biases alone."""
    uniform(bias, 1 / math.sqrt(fans(weight)[0]))
    assert bias.abs().max() > 0


def directions(bias: Tensor, _: Tensor) -> None:
    """Head m looks along (cos, sin) of m eighths of a turn, on a square; point p goes p + 1 steps, on every level."""
    wanted = torch.zeros(HEADS, LEVELS, POINTS, 2)
    for head, level, point in itertools.product(range(HEADS), range(LEVELS), range(POINTS)):
        x, y = math.cos(2 * math.pi * head / HEADS), math.sin(2 * math.pi * head / HEADS)
        longest = max(abs(x), abs(y))
        wanted[head, level, point] = torch.tensor([x, y]) / longest * (point + 1)
    torch.testing.assert_close(bias, wanted.flatten(), atol=1e-5, rtol=0)


ZERO, ONE = constant(0.0), constant(1.0)
_ANY_NORM = r"(.*\.)?(\w*norm|bn\d|norm\d|downsample\.1|projections\.\d+\.1|embed\.0|conv1\.1)"
RULES: list[tuple[str, Check]] = [
    (rf"{_ANY_NORM}\.weight", ONE),
    (rf"{_ANY_NORM}\.bias", ZERO),
    # Backbones: the convolutions of ResNets by He's rule, the matrices of Swin around 0.02.
    (r"backbone\.(conv1|conv1\.[03]|layer.*\.conv\d|layer.*\.downsample\.0)\.weight", he),
    (r"backbone\.layers\..*\.(qkv|proj|fc\d|reduction|relative_position_bias_table)(\.weight)?", small_normal),
    (r"backbone\.layers\..*\.(qkv|proj|fc\d)\.bias", ZERO),
    (r"backbone\.patch_embed\.proj\.weight", of_torch),
    (r"backbone\.patch_embed\.proj\.bias", of_torch_bias),
    # From maps to tokens.
    (r"feature_projection\.projections\.\d+\.0\.weight", xavier),
    (r"feature_projection\.projections\.\d+\.0\.bias", ZERO),
    (r"feature_projection\.level_embedding", unit_normal),
    # Attention.
    (r".*\.sampling_offsets\.weight|.*\.attention_weights\.(weight|bias)", ZERO),
    (r".*\.sampling_offsets\.bias", directions),
    (r".*attention\.(value|output)\.weight|.*attention\.(in_proj_weight|out_proj\.weight)", xavier),
    (r".*attention\.(value|output)\.bias|.*attention\.(in_proj_bias|out_proj\.bias)", ZERO),
    # Other matrices of the transformer; their biases are torch's own.
    (r".*\.feedforward\.(expand|contract)\.weight|queries\.(project|position)\.weight", xavier),
    (r".*\.feedforward\.(expand|contract)\.bias|queries\.(project|position)\.bias", of_torch_bias),
    (r"scoring_network\.(embed\.1|score\.\d)\.weight", xavier),
    (r"scoring_network\.(embed\.1|score\.\d)\.bias", of_torch_bias),
    # Learned queries.
    (r"queries\.embedding\.weight", unit_normal),
    (r"queries\.reference_points\.weight", xavier),
    (r"queries\.reference_points\.bias", ZERO),
    # Heads: a class has probability 0.01, a box is its reference.
    (r".*\.classes\.weight|.*\.boxes\.(first|second)\.weight", of_torch),
    (r".*\.boxes\.(first|second)\.bias", of_torch_bias),
    (r".*\.classes\.bias", constant(-math.log(99))),
    (r".*\.boxes\.last\.weight", ZERO),
]
LAST_BOX_BIAS = r".*\.boxes\.last\.bias"


def build(name: str) -> SparseDetr:
    torch.manual_seed(0)
    sizes = {"channels": 64, "heads": HEADS, "feedforward_channels": 128, "encoder_layers": 2, "decoder_layers": 2}
    return SparseDetr(ModelConfig(**{**sizes, "num_classes": 20, "queries": 20, **MODELS[name]}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_starts_by_its_rule(name: str) -> None:
    unruled = []
    parameters = {key: parameter.detach() for key, parameter in build(name).named_parameters()}
    for key, parameter in parameters.items():
        rules = [check for pattern, check in RULES if re.fullmatch(pattern, key)]
        # Learned queries start from boxes of a logit of -2; the first of the decoder's heads adds it.
        learned = name in ("one_stage", "detr") and key == "decoder.heads.0.boxes.last.bias"
        if re.fullmatch(LAST_BOX_BIAS, key):
            assert parameter.tolist() == ([0.0, 0.0, -2.0, -2.0] if learned else [0.0] * 4), key
        elif len(rules) != 1:
            unruled.append(key)
        else:
            try:
                rules[0](parameter, parameters.get(f"{key.rpartition('.')[0]}.weight", parameter))
            except AssertionError as error:
                raise AssertionError(f"{key}: {error}") from error
    assert not unruled, "a parameter has exactly one rule: give it one here and in docs/models.md"


@pytest.mark.parametrize("name", MODELS)
def test_no_two_random_tensors_are_copies(name: str) -> None:
    """Heads too: the authors' are copies of one another at the start."""
    random = [
        (key, parameter.detach())
        for key, parameter in build(name).named_parameters()
        if parameter.ndim > 1 and parameter.std() > 0
    ]
    for (first, a), (second, b) in itertools.combinations(random, 2):
        assert a.shape != b.shape or not torch.equal(a, b), (first, second)
