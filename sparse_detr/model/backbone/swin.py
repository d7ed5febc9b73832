"""Swin-T (Liu et al., 2021) in its variant for detection: images of any size, maps of strides 8, 16 and 32.

Parameters bear the official key names (`patch_embed.proj`, `layers.1.blocks.0.attn.qkv`), so that published weights
load by name. Inside, maps are channels-last: [B, H, W, C].
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sparse_detr.model.backbone.base import Backbone
from sparse_detr.model.config import BackboneConfig

WINDOW = 7
"""Side of the windows that attention looks at, in tokens."""
PATCH = 4
"""Side of the patches that become tokens, in pixels."""

_SHIFT = WINDOW // 2
_WIDTH = 96
_DEPTHS = (2, 2, 6, 2)
_HEADS = (3, 6, 12, 24)
_FORBIDDEN = -100.0
"""Added to the logits between tokens that are neighbours only because the map was rolled."""
_SPREAD = 0.02
"""Standard deviation of the first weights."""


class DropPath(nn.Module):
    """Training skips a branch for some images of the batch and scales it up for the others (Huang et al., 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """The branch, or zeros, for each image."""
        if not self.training or self.probability == 0.0:
            return branch
        kept = 1.0 - self.probability
        return branch * branch.new_empty(len(branch), 1, 1, 1).bernoulli_(kept).div_(kept)


class WindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias for every offset between two of its tokens (eq. 4)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_position_index())
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=_SPREAD)

    def forward(self, x: Float[Tensor, "N S C"], mask: Float[Tensor, "W S S"] | None) -> Float[Tensor, "N S C"]:
        """Attend inside N windows of S tokens, all windows of an image in a row; `mask` is added to their logits."""
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
        query, key, value = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        result: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return result


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "*_ C"]) -> Float[Tensor, "*_ C"]:
        """Token by token."""
        result: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return result


class Block(nn.Module):
    """Attention in windows, then the MLP, each around a shortcut; every second block rolls the map first."""

    def __init__(self, channels: int, heads: int, *, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B H W C"], mask: Float[Tensor, "_ S S"]) -> Float[Tensor, "B H W C"]:
        """The next map; `mask` is that of `shift_mask` for this size."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        result: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return result

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        # The padding comes after the norm and is not masked: published weights were trained with it so.
        x = pad_to_multiple(x, WINDOW)
        if self.shifted:
            x = x.roll((-_SHIFT, -_SHIFT), (1, 2))
        rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
        windows = x.view(-1, rows, WINDOW, columns, WINDOW, x.shape[3]).transpose(2, 3)
        mixed = self.attn(windows.flatten(3, 4).flatten(0, 2), mask if self.shifted else None)
        x = mixed.view(windows.shape).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.shifted:
            x = x.roll((_SHIFT, _SHIFT), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Four neighbours into one token of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """The map of half the size, rounded up."""
        x = pad_to_multiple(x, 2)
        # The column changes last: even row, odd row, then both again in the odd column.
        neighbours = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        result: Tensor = self.reduction(self.norm(neighbours))
        return result


class PatchEmbedding(nn.Module):
    """Patches of 4x4 pixels to normalised tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, _WIDTH, PATCH, PATCH)
        self.norm = nn.LayerNorm(_WIDTH)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B _ _ _"]:
        """Channels-last tokens, one for each patch, also for those cut off by the right or bottom edge."""
        pixels = functional.pad(pixels, (0, -pixels.shape[3] % PATCH, 0, -pixels.shape[2] % PATCH))
        result: Tensor = self.norm(self.proj(pixels).permute(0, 2, 3, 1))
        return result


class Stage(nn.Module):
    """Blocks at one size, and the step to the next size."""

    def __init__(self, index: int, drop_path: tuple[float, ...]) -> None:
        super().__init__()
        channels = _WIDTH << index
        self.blocks = nn.ModuleList(
            Block(channels, _HEADS[index], shifted=number % 2 == 1, drop_path=probability)
            for number, probability in enumerate(drop_path)
        )
        self.downsample = PatchMerging(channels) if index + 1 < len(_DEPTHS) else nn.Identity()

    def forward(self, x: Float[Tensor, "B H W C"]) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B _ _ _"]]:
        """The stage's map, and what the next stage starts from."""
        mask = shift_mask(x.shape[1], x.shape[2]).to(x)
        for block in self.blocks:
            x = block(x, mask)
        return x, self.downsample(x)


class Swin(Backbone):
    """Image to maps of strides 8, 16 and 32, each behind a layer norm of its own."""

    channels = (192, 384, 768)

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding()
        self.layers = nn.ModuleList(Stage(index, rates) for index, rates in enumerate(_drop_rates(config.drop_path)))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(size) for size in self.channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_SPREAD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.freeze([[self.patch_embed], *([stage] for stage in self.layers)], config.frozen_stages)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Maps of layers 1, 2 and 3. Padding of the images is not masked."""
        x = self.patch_embed(pixels)
        maps: list[Tensor] = []
        for stage in self.layers:
            level, x = stage(x)
            maps.append(level)
        normed = (self.norm1(maps[1]), self.norm2(maps[2]), self.norm3(maps[3]))
        return tuple(level.permute(0, 3, 1, 2).contiguous() for level in normed)


def _drop_rates(last: float) -> list[tuple[float, ...]]:
    """For each stage, how often its blocks are skipped: from 0 for the first of all, linearly, to `last`."""
    step = last / (sum(_DEPTHS) - 1)
    starts = [sum(_DEPTHS[:index]) for index in range(len(_DEPTHS))]
    return [tuple(step * (start + i) for i in range(depth)) for start, depth in zip(starts, _DEPTHS, strict=True)]


def pad_to_multiple(x: Float[Tensor, "B _ _ C"], size: int) -> Float[Tensor, "B _ _ C"]:
    """Zeros at the right and bottom of a channels-last map, until `size` divides both sides."""
    return functional.pad(x, (0, 0, 0, -x.shape[2] % size, 0, -x.shape[1] % size))


def shift_mask(height: int, width: int) -> Float[Tensor, "W S S"]:
    """Term that shifted blocks add to the logits of each of W windows: 0, or -100 across the edges of the rolled map.

    Args:
        height: of the map, in tokens, before it is padded to whole windows.
        width: likewise.
    """
    rows, columns = _regions(height), _regions(width)
    regions = rows[:, None, :, None] * 3 + columns[None, :, None, :]
    regions = regions.flatten(2).flatten(0, 1)
    return (regions[:, :, None] != regions[:, None, :]).float() * _FORBIDDEN


def _regions(side: int) -> Int[Tensor, "_ 7"]:
    """For each window and place along one axis of the rolled map: which of three pieces it belongs to."""
    size = side + -side % WINDOW
    place = torch.arange(size)
    return ((place >= size - WINDOW).long() + (place >= size - _SHIFT).long()).view(-1, WINDOW)


def _relative_position_index() -> Int[Tensor, "S S"]:
    """Row of the bias table for every pair of tokens of a window."""
    place = torch.arange(WINDOW)
    offset = place[:, None] - place[None, :] + WINDOW - 1
    index = offset[:, None, :, None] * (2 * WINDOW - 1) + offset[None, :, None, :]
    return index.reshape(WINDOW**2, WINDOW**2)
