"""ResNets: strides, names, freezing, and agreement with an independent batch norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_detr import BackboneConfig
from sparse_detr.model.backbone.frozen_batch_norm import FrozenBatchNorm
from sparse_detr.model.backbone.resnet import ResNet


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet_tiny", (64, 96, 128)),
        ("resnet18", (128, 256, 512)),
        ("resnet50", (512, 1024, 2048)),
        ("resnet101", (512, 1024, 2048)),
    ],
)
def test_maps_have_strides_8_16_32(name: str, channels: tuple[int, ...]) -> None:
    resnet = ResNet(BackboneConfig(name=name))  # type: ignore[arg-type]
    assert resnet.channels == channels
    with torch.no_grad():
        maps = resnet(torch.randn(1, 3, 97, 64))
    assert [tuple(level.shape[1:]) for level in maps] == [
        (channels[0], 13, 8), (channels[1], 7, 4), (channels[2], 4, 2),
    ]  # fmt: skip


def test_frozen_batch_norm_is_batch_norm_in_evaluation() -> None:
    norm = nn.BatchNorm2d(8).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        assert tensor is not None
        tensor.copy_(torch.rand(8) + 0.5)
    frozen = FrozenBatchNorm(8)
    frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"})
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(frozen(x), norm(x))
    assert not list(frozen.parameters())


@pytest.mark.parametrize("stages", [0, 2, 5])
@pytest.mark.parametrize("norm", ["frozen_batch_norm", "group_norm"])
def test_frozen_stages_keep_their_weights(stages: int, norm: str) -> None:
    resnet = ResNet(BackboneConfig(name="resnet_tiny", norm=norm, frozen_stages=stages))  # type: ignore[arg-type]
    order = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    for name, parameter in resnet.named_parameters():
        stage = order.index(name.split(".")[0].replace("bn1", "conv1"))
        assert parameter.requires_grad == (stage >= stages), name


def test_names_are_torchvisions() -> None:
    names = set(ResNet(BackboneConfig(name="resnet50")).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight"} <= names
    assert len(names) == 265  # torchvision's 320 without fc and the 53 counters of batches


def test_resnet101_has_23_blocks_in_layer3() -> None:
    with torch.device("meta"):
        resnet = ResNet(BackboneConfig(name="resnet101"))
    assert [len(stage) for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4)] == [3, 4, 23, 3]
    # torchvision's number without its classifier, and without its batch norms, which are buffers here.
    assert sum(p.numel() for p in resnet.parameters()) == 44_549_160 - 2_049_000 - 105_344
