"""The cost formula, against torch's counter on real models and against figures measured on the authors' code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipelines.bench.model.published import DENSE_SIZE, auxiliary_heads, needless
from sparse_detr.cost.model import ModelCost, model_cost
from sparse_detr.cost.work import Work
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError
from sparse_detr.model.config import BackboneConfig, ModelConfig
from sparse_detr.model.deformable_attention import Attended, DeformableAttention
from sparse_detr.records import ImageBatch

TINY = BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0)
SPARSE = ModelConfig(
    num_classes=7, backbone=TINY, channels=64, heads=4, points=3, encoder_layers=3, decoder_layers=2,
    feedforward_channels=96, queries=20, keep_ratio=0.3,
)  # fmt: skip
DENSE = replace(SPARSE, keep_ratio=1.0, encoder_auxiliary_loss=False)
PLAIN = replace(DENSE, query_source="learned", box_refinement=False, shared_heads=True)
DETR = replace(PLAIN, attention="full", levels=1)
FAMILY: dict[str, ModelConfig] = {
    "sparse": SPARSE,
    "sparse, no heads in the encoder": replace(SPARSE, encoder_auxiliary_loss=False),
    "sparse by objectness": replace(SPARSE, token_criterion="objectness"),
    "three levels": replace(SPARSE, levels=3),
    "five levels": replace(SPARSE, levels=5),
    "dense": DENSE,
    "dense, encoder heads": replace(SPARSE, keep_ratio=1.0),
    "two-stage": replace(DENSE, query_content="proposal", proposal_score="class_agnostic"),
    "two-stage, one head": replace(
        DENSE, query_content="proposal", proposal_score="class_agnostic", box_refinement=False, shared_heads=True
    ),
    "refinement by one head": replace(DENSE, shared_heads=True),
    "learned queries": PLAIN,
    "learned queries, refinement": replace(PLAIN, box_refinement=True, shared_heads=False),
    "DETR": DETR,
    "DETR on three levels": replace(DETR, levels=3),
    "more queries than tokens": replace(SPARSE, queries=2000),
    "frozen batch norm": replace(SPARSE, backbone=BackboneConfig(name="resnet_tiny")),
    "ResNet-18": replace(SPARSE, backbone=BackboneConfig(name="resnet18")),
    "ResNet-50": replace(SPARSE, backbone=BackboneConfig(name="resnet50")),
    "ResNet-101": replace(SPARSE, backbone=BackboneConfig(name="resnet101")),
    "Swin-T": replace(SPARSE, backbone=BackboneConfig(name="swin_tiny")),
}
MODULES = {
    "backbone": "backbone", "projection": "feature_projection", "encoder": "encoder", "proposals": "queries",
    "decoder": "decoder",
}  # fmt: skip


@pytest.mark.parametrize("size", [(97, 131), (64, 64)], ids=str)
@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY)
def test_formula_equals_what_torch_counts(config: ModelConfig, size: tuple[int, int]) -> None:
    model = SparseDetr(config)
    cost = model_cost(config, *size)
    counted = _count(model, size)
    assert {name: part.products for name, part in cost.parts.items()} == counted["products"]
    assert cost.whole.norms == counted["norms"]
    assert cost.whole.sampling == counted["sampling"]
    assert cost.whole.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {name: cost.parts[name].parameters for name in MODULES} == {
        name: sum(parameter.numel() for parameter in getattr(model, module).parameters())
        for name, module in MODULES.items()
    }


def test_another_keep_ratio_on_the_same_model() -> None:
    model = SparseDetr(SPARSE)
    for ratio in (0.1, 0.77, 1.0):
        cost = model_cost(SPARSE, 80, 120, ratio)
        assert {name: part.products for name, part in cost.parts.items()} == _count(model, (80, 120), ratio)["products"]
        assert cost.whole.parameters == sum(parameter.numel() for parameter in model.parameters())


def _count(model: SparseDetr, size: tuple[int, int], keep_ratio: float | None = None) -> dict[str, Any]:
    """Work of one forward pass, by counter and hooks."""
    seen = {"norms": 0, "sampling": 0}

    def normed(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen["norms"] += 5 * output.numel()

    def sampled(module: DeformableAttention, _inputs: Any, output: Attended) -> None:
        samples = output.output[..., 0].numel() * module.attention_weights.out_features
        seen["sampling"] += 4 * samples * output.output.shape[-1] // module.heads

    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.register_forward_hook(normed)
        if isinstance(module, DeformableAttention):
            module.register_forward_hook(sampled)
    # torch's module tracker stumbles over learned queries that want a gradient.
    model.eval().requires_grad_(False)
    batch = ImageBatch.from_list([torch.randn(3, *size)])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch, keep_ratio)
    flops = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    products = {name: flops.get(f"SparseDetr.{module}", 0) for name, module in MODULES.items()}
    # The scorer's first step runs in a layer of the proposals, but outside their forward.
    products["scorer"] = flops["Global"] - sum(products.values())
    for module in model.modules():
        module._forward_hooks.clear()
    return {"products": products, **seen}


def _giga(work: Work) -> float:
    return round(work.products / 1e9, 2)


@pytest.mark.parametrize(
    ("ratio", "tokens_kept", "encoder", "total"), [(0.1, 1783, 15.75, 106.41), (0.3, 5347, 33.24, 123.89)]
)
def test_sparse_figures_measured_on_the_authors_code(
    ratio: float, tokens_kept: int, encoder: float, total: float
) -> None:
    """algorithm.md, section 17: 800x1066, torch's counter, with the encoder's auxiliary heads."""
    config = ModelConfig(keep_ratio=ratio)
    cost = model_cost(config, 800, 1066)
    assert (cost.tokens, cost.kept) == (17821, tokens_kept)
    assert _giga(cost.parts["encoder"] + auxiliary_heads(config, cost)) == encoder
    assert _giga(_authors(config, cost) + auxiliary_heads(config, cost)) == total
    # First-stage projection 2.34 for both of its uses, scoring network 1.90.
    projection = 17821 * 256 * 256
    assert round(2 * projection / 1e9, 2) == 2.34
    assert round((cost.parts["scorer"].products - projection) / 1e9, 2) == 1.90


def test_dense_figures_measured_on_the_authors_code() -> None:
    """The same section; the dense model there is the two-stage one, whose queries come from proposals."""
    config = ModelConfig(
        keep_ratio=1.0, encoder_auxiliary_loss=False, query_content="proposal", proposal_score="class_agnostic"
    )
    cost = model_cost(config, 800, 1066)
    parts = {name: _giga(part) for name, part in cost.parts.items()}
    assert (parts["backbone"], parts["projection"], parts["encoder"], parts["scorer"]) == (69.98, 4.12, 80.59, 0.0)
    # Their decoder module holds the box heads of all layers and no class head.
    class_head = 300 * 256 * 91
    assert round((cost.parts["decoder"].products - class_head) / 1e9, 2) == 9.23
    assert _giga(_authors(config, cost)) == 168.21
    assert round((_authors(config, model_cost(config, *DENSE_SIZE))).total / 1e9, 2) == 177.37  # by fvcore
    assert round(cost.whole.sampling / 1e9, 2) == 1.78  # 1.75 and 0.03
    assert round(cost.whole.norms / 1e9, 2) == 0.33  # layer norms 0.30, group norms 0.02


def _authors(config: ModelConfig, cost: ModelCost) -> Work:
    return cost.whole + sum(needless(config, cost).values(), Work())


def test_published_parameters() -> None:
    """algorithm.md, section 15: trainable 39.85, 40.83 and 41.71 million; 0.2224 million of a ResNet-50 are frozen."""
    dense = ModelConfig(keep_ratio=1.0, encoder_auxiliary_loss=False)
    plain = replace(dense, query_source="learned", box_refinement=False, shared_heads=True)
    counted = [model_cost(config, 800, 800).whole.parameters for config in (plain, dense, ModelConfig())]
    assert [round((parameters - 222_400) / 1e6, 2) for parameters in counted] == [39.85, 40.83, 41.71]


@pytest.mark.parametrize(
    ("height", "width", "ratio", "message"),
    [
        (0, 100, None, "height: 0"),
        (100, -1, None, "width: -1"),
        (100, 100, 0.0, "keep_ratio: 0.0"),
        (100, 100, 1.1, "keep_ratio: 1.1"),
    ],
)
def test_what_cannot_be_counted_is_refused(height: int, width: int, ratio: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_cost(SPARSE, height, width, ratio)


def test_a_dense_model_has_no_smaller_ratio() -> None:
    with pytest.raises(ConfigError, match=r"keep_ratio: 0\.5, but this model was built dense"):
        model_cost(DENSE, 64, 64, 0.5)
