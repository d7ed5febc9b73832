"""Operations of backbones by formula, and the size of the maps that they return."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_detr.cost.work import Work, feedforward, layer_norm, linear
from sparse_detr.model.backbone.resnet import PLANS, ResNetPlan
from sparse_detr.model.config import BackboneConfig
from sparse_detr.records import Shapes

_SWIN_CHANNELS, _SWIN_DEPTHS, _SWIN_HEADS = 96, (2, 2, 6, 2), (3, 6, 12, 24)
_PATCH, _WINDOW = 4, 7


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneCost:
    """A backbone on one image."""

    work: Work
    shapes: Shapes
    """(height, width) of its maps of strides 8, 16 and 32."""
    channels: tuple[int, int, int]
    """Of these maps."""


def backbone_cost(config: BackboneConfig, height: int, width: int) -> BackboneCost:
    """The cost for an image of `height` x `width` pixels."""
    if config.name == "swin_tiny":
        return _swin(height, width)
    return _resnet(PLANS[config.name], config.norm == "group_norm", height, width)


def convolution(
    size: tuple[int, int], inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = False
) -> Work:
    """A convolution with odd `kernel`, padded by half of it, on a map of `size`."""
    rows, columns = strided(size, stride)
    return linear(rows * columns, inputs * kernel**2, outputs, bias=bias)


def strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The size of a map after such a convolution or pooling."""
    return -(-size[0] // stride), -(-size[1] // stride)


def _resnet(plan: ResNetPlan, group_norm: bool, height: int, width: int) -> BackboneCost:
    def step(size: tuple[int, int], inputs: int, outputs: int, kernel: int, stride: int = 1) -> Work:
        rows, columns = strided(size, stride)
        norm = layer_norm(rows * columns, outputs) if group_norm else Work()
        return convolution(size, inputs, outputs, kernel, stride=stride) + norm

    def block(size: tuple[int, int], inputs: int, inner: int, outputs: int, stride: int) -> Work:
        after = strided(size, stride)
        if plan.bottleneck:
            work = step(size, inputs, inner, 1) + step(size, inner, inner, 3, stride) + step(after, inner, outputs, 1)
        else:
            work = step(size, inputs, inner, 3, stride) + step(after, inner, outputs, 3)
        shortcut = stride != 1 or inputs != outputs
        return work + step(size, inputs, outputs, 1, stride) if shortcut else work

    size, inputs = (height, width), plan.widths[0]
    if plan.small_stem:
        middle = inputs * 3 // 4
        work = step(size, 3, middle, 3, 2) + step(strided(size, 2), middle, inputs, 3, 2)
    else:
        work = step(size, 3, inputs, 7, 2)
    size = strided(strided(size, 2), 2)
    shapes = []
    for stage, (depth, inner, outputs) in enumerate(zip(plan.depths, plan.widths, plan.channels, strict=True)):
        stride = 1 if stage == 0 else 2
        work += block(size, inputs, inner, outputs, stride)
        size, inputs = strided(size, stride), outputs
        work += block(size, outputs, inner, outputs, 1) * (depth - 1)
        shapes.append(size)
    return BackboneCost(work=work, shapes=tuple(shapes[1:]), channels=plan.channels[1:])


def _swin(height: int, width: int) -> BackboneCost:
    """Swin-T as in detection: windows of 7 x 7 on maps padded to multiples of 7, a norm on every returned map."""
    size, channels = strided((height, width), _PATCH), _SWIN_CHANNELS
    patches = size[0] * size[1]
    work = linear(patches, 3 * _PATCH**2, channels) + layer_norm(patches, channels)
    shapes, widths = [], []
    for stage, (depth, heads) in enumerate(zip(_SWIN_DEPTHS, _SWIN_HEADS, strict=True)):
        if stage > 0:
            size = strided(size, 2)
            rows = size[0] * size[1]
            work += layer_norm(rows, 4 * channels) + linear(rows, 4 * channels, 2 * channels, bias=False)
            channels *= 2
            work += layer_norm(rows, channels)
            shapes.append(size)
            widths.append(channels)
        work += _swin_block(size, channels, heads) * depth
    first, second, third = widths
    return BackboneCost(work=work, shapes=tuple(shapes), channels=(first, second, third))


def _swin_block(size: tuple[int, int], channels: int, heads: int) -> Work:
    tokens = size[0] * size[1]
    rows, columns = strided(size, _WINDOW)
    padded, window = rows * columns * _WINDOW**2, _WINDOW**2
    attention = linear(padded, channels, 3 * channels) + linear(padded, channels, channels)
    between = Work(products=2 * padded * window * channels, parameters=(2 * _WINDOW - 1) ** 2 * heads)
    norms = layer_norm(tokens, channels) * 2
    return norms + attention + between + feedforward(tokens, channels, 4 * channels)
