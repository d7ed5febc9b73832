"""Reference points: places of tokens, from which queries look, and references scaled to every level."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_detr.records import Shapes


def level_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "HW 2"]:
    """(x, y) of the pixel centres of one level, in its pixels, row by row; in the type and on the device of `like`."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=like.dtype, device=like.device) + 0.5,
        torch.arange(width, dtype=like.dtype, device=like.device) + 0.5,
        indexing="ij",
    )
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def encoder_reference_points(shapes: Shapes, valid_ratios: Float[Tensor, "B L 2"]) -> Float[Tensor, "B T L 2"]:
    """Each token's own centre, relative to the padded map of every level.

    It is first taken relative to the valid area of its own level (beyond 1 in the padding).
    """
    centres = []
    for level, (height, width) in enumerate(shapes):
        valid = valid_ratios[:, None, level] * valid_ratios.new_tensor((width, height))
        centres.append(level_grid(height, width, valid_ratios) / valid)
    return torch.cat(centres, dim=1)[:, :, None] * valid_ratios[:, None]


def scale_to_levels(
    references: Float[Tensor, "B Q size"], valid_ratios: Float[Tensor, "B L 2"]
) -> Float[Tensor, "B Q L size"]:
    """References (x, y) or (cx, cy, w, h), relative to the image, as parts of every level's padded map."""
    ratios = valid_ratios if references.shape[-1] == 2 else torch.cat((valid_ratios, valid_ratios), dim=-1)
    return references[:, :, None] * ratios[:, None]


def inverse_sigmoid(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Logit, with x and 1 - x held to at least 1e-5."""
    x = x.clamp(0, 1)
    return (x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5)).log()
