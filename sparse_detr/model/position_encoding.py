"""Sine encodings of places in an image and of boxes (algorithm of DETR; temperature 10000, scale 2 pi)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_TEMPERATURE = 10000.0
_SCALE = 2 * math.pi
"""Longest wavelength and unit of DETR's encoding: published weights have learned these frequencies."""


def encode_places(
    padding: Bool[Tensor, "B H W"], channels: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B HW channels"]:
    """Encoding of every cell of one level, computed in `dtype`: half the channels for y, then half for x.

    Coordinates count the pixels that are image and are relative to their number, so the encoding of an image
    does not depend on its padding. In rows that are all padding the arguments are around -3e6: finite, but
    noise; nothing of it reaches a token that is image.
    """
    image = ~padding
    y = image.cumsum(1, dtype=dtype)
    x = image.cumsum(2, dtype=dtype)
    y = (y - 0.5) / (y[:, -1:, :] + 1e-6) * _SCALE
    x = (x - 0.5) / (x[:, :, -1:] + 1e-6) * _SCALE
    return torch.cat((_waves(y, channels // 2), _waves(x, channels // 2)), dim=-1).flatten(1, 2)


def encode_boxes(boxes: Float[Tensor, "B Q four"], channels: int) -> Float[Tensor, "B Q _"]:
    """Encoding of cxcywh boxes (relative): `channels` numbers for each of the four, in that order."""
    return _waves(boxes * _SCALE, channels).flatten(-2)


def _waves(angles: Float[Tensor, "*n"], channels: int) -> Float[Tensor, "*n channels"]:
    """Sine at even and cosine at odd channels, of wavelengths that grow geometrically."""
    exact = torch.promote_types(angles.dtype, torch.float32)
    pair = torch.arange(channels, dtype=exact, device=angles.device).div(2, rounding_mode="floor")
    phases = angles[..., None] / _TEMPERATURE ** (2 * pair / channels)
    return torch.stack((phases[..., 0::2].sin(), phases[..., 1::2].cos()), dim=-1).flatten(-2)
