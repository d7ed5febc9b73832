"""ResNets (He et al., 2016) that return the maps of strides 8, 16 and 32.

Parameters bear torchvision's key names (`conv1`, `layer1.0.bn2`, `layer2.0.downsample.0`), also where the
norm is a group norm, so that published weights load by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from sparse_detr.model.backbone.base import Backbone
from sparse_detr.model.backbone.frozen_batch_norm import FrozenBatchNorm
from sparse_detr.model.config import BackboneConfig

NormFactory = Callable[[int], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetPlan:
    """The numbers of one ResNet."""

    bottleneck: bool
    depths: tuple[int, int, int, int]
    """Blocks in layer1 .. layer4."""
    widths: tuple[int, int, int, int]
    """Inner channels of a block; a bottleneck's output has four times as many."""
    small_stem: bool = False
    """Two 3x3 convolutions of stride 2 in place of one of 7x7 and a pooling: cheaper, and small objects keep their
    corners."""

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Output channels of layer1 .. layer4."""
        factor = 4 if self.bottleneck else 1
        first, second, third, fourth = self.widths
        return first * factor, second * factor, third * factor, fourth * factor


PLANS = {
    "resnet_tiny": ResNetPlan(bottleneck=False, depths=(2, 2, 2, 2), widths=(32, 64, 96, 128), small_stem=True),
    "resnet18": ResNetPlan(bottleneck=False, depths=(2, 2, 2, 2), widths=(64, 128, 256, 512)),
    "resnet50": ResNetPlan(bottleneck=True, depths=(3, 4, 6, 3), widths=(64, 128, 256, 512)),
    "resnet101": ResNetPlan(bottleneck=True, depths=(3, 4, 23, 3), widths=(64, 128, 256, 512)),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride, norm)

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """The next map."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu(out + self.downsample(x))
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """The next map."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu(out + self.downsample(x))
        return result


def _shortcut(inputs: int, outputs: int, stride: int, norm: NormFactory) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


class ResNet(Backbone):
    """Image to maps of strides 8, 16 and 32: those of layer2, layer3 and layer4."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        plan = PLANS[config.name]
        norm: NormFactory = FrozenBatchNorm if config.norm == "frozen_batch_norm" else _group_norm
        self.channels = plan.channels[1:]
        self.conv1 = _small_stem(plan.widths[0], norm) if plan.small_stem else _stem(plan.widths[0])
        self.bn1 = norm(plan.widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if plan.small_stem else nn.MaxPool2d(3, 2, 1)
        inputs = (plan.widths[0], *plan.channels[:3])
        self.layer1 = _stage(plan, 0, inputs[0], 1, norm)
        self.layer2 = _stage(plan, 1, inputs[1], 2, norm)
        self.layer3 = _stage(plan, 2, inputs[2], 2, norm)
        self.layer4 = _stage(plan, 3, inputs[3], 2, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        groups = ((self.conv1, self.bn1), (self.layer1,), (self.layer2,), (self.layer3,), (self.layer4,))
        self.freeze(groups, config.frozen_stages)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Maps of layer2, layer3 and layer4."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(pixels))))
        stride8: Tensor = self.layer2(self.layer1(stem))
        stride16: Tensor = self.layer3(stride8)
        stride32: Tensor = self.layer4(stride16)
        return stride8, stride16, stride32


def _stem(outputs: int) -> nn.Module:
    return nn.Conv2d(3, outputs, 7, 2, 3, bias=False)


def _small_stem(outputs: int, norm: NormFactory) -> nn.Module:
    inner = outputs * 3 // 4
    return nn.Sequential(
        nn.Conv2d(3, inner, 3, 2, 1, bias=False),
        norm(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, outputs, 3, 2, 1, bias=False),
    )


def _stage(plan: ResNetPlan, index: int, inputs: int, stride: int, norm: NormFactory) -> nn.Sequential:
    block = Bottleneck if plan.bottleneck else BasicBlock
    width, outputs = plan.widths[index], plan.channels[index]
    first = block(inputs, width, stride, norm)
    return nn.Sequential(first, *(block(outputs, width, 1, norm) for _ in range(plan.depths[index] - 1)))


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(32, channels // 4), channels)
