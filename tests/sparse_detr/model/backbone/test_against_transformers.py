"""The features of our backbones equal those of the `transformers` implementations, weights mapped across."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_detr import BackboneConfig
from sparse_detr.model.backbone.frozen_batch_norm import FrozenBatchNorm
from sparse_detr.model.backbone.resnet import PLANS, ResNet
from sparse_detr.model.backbone.swin import Swin

transformers = pytest.importorskip("transformers", reason="the extra `compare` is not installed: no transformers")

SIZES = [(75, 101), (97, 64), (224, 256), (230, 331)]
SWIN_RULES = (
    (r"^patch_embed\.proj\.", "swin.embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "swin.embeddings.norm."),
    (r"^norm1\.", "hidden_states_norms.stage2."),
    (r"^norm2\.", "hidden_states_norms.stage3."),
    (r"^norm3\.", "hidden_states_norms.stage4."),
    (r"^layers\.", "swin.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.relative_position_bias_table$", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)
RESNET_RULES = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda match: f".layer.{int(match[1]) - 1}.normalization."),
)


def fill(model: nn.Module) -> None:
    """Random numbers everywhere, also where training starts from zeros and ones; the signal keeps its size."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not tensor.is_floating_point():
                continue
            numbers = torch.randn(tensor.shape, generator=generator)
            if isinstance(module, (nn.LayerNorm, FrozenBatchNorm)):
                # Blocks add to what is there: with less than 1 the sum of 23 of them keeps a size like a real one's.
                numbers = numbers * 0.2 if name in ("bias", "running_mean") else 0.6 + 0.3 * numbers.tanh()
            elif name == "weight":
                numbers /= tensor[0].numel() ** 0.5
            elif name == "bias":
                numbers *= 0.2
            tensor.data.copy_(numbers)


def map_across(state: dict[str, Tensor], rules: tuple[tuple[str, Any], ...]) -> dict[str, Tensor]:
    """Our tensors under the names that transformers gives them."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("relative_position_index"):
            continue
        for pattern, theirs in rules:
            name = re.sub(pattern, theirs, name)
        if ".attn.qkv." in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = third
        else:
            renamed[name] = tensor
    return renamed


def load(model: nn.Module, state: dict[str, Tensor], *, spare: str) -> None:
    """Every one of our tensors has a place; what theirs has more is named by the pattern `spare`."""
    found = model.load_state_dict(state, strict=False)
    assert found.unexpected_keys == []
    assert [key for key in found.missing_keys if not re.search(spare, key)] == []


def assert_equal_features(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert b.std() > 0.1  # else a tolerance of 1e-4 says nothing
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def pixels(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def swins() -> tuple[Swin, nn.Module]:
    ours = Swin(BackboneConfig(name="swin_tiny")).eval()
    fill(ours)
    theirs = transformers.SwinBackbone(transformers.SwinConfig(out_features=["stage2", "stage3", "stage4"])).eval()
    load(theirs, map_across(ours.state_dict(), SWIN_RULES), spare=r"^swin\.layernorm\.|relative_position_index$")
    return ours, theirs


@pytest.mark.parametrize("size", SIZES)
def test_swin(swins: tuple[Swin, nn.Module], size: tuple[int, int]) -> None:
    ours, theirs = swins
    with torch.no_grad():
        assert_equal_features(ours(pixels(size)), theirs(pixels(size)).feature_maps)


@pytest.fixture(scope="module", params=["resnet18", "resnet50", "resnet101"])
def resnets(request: pytest.FixtureRequest) -> tuple[ResNet, nn.Module]:
    plan = PLANS[request.param]
    ours = ResNet(BackboneConfig(name=request.param)).eval()
    fill(ours)
    config = transformers.ResNetConfig(
        layer_type="bottleneck" if plan.bottleneck else "basic",
        depths=list(plan.depths),
        hidden_sizes=list(plan.channels),
    )
    theirs = transformers.ResNetModel(config).eval()
    load(theirs, map_across(ours.state_dict(), RESNET_RULES), spare=r"num_batches_tracked$")
    return ours, theirs


@pytest.mark.parametrize("size", SIZES[:3])
def test_resnet(resnets: tuple[ResNet, nn.Module], size: tuple[int, int]) -> None:
    ours, theirs = resnets
    with torch.no_grad():
        stages = theirs(pixels(size), output_hidden_states=True).hidden_states
        assert_equal_features(ours(pixels(size)), stages[-3:])
