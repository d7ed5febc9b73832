"""From backbone maps to tokens: projection to C channels, a coarser level on top, positions, padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from sparse_detr.model.position_encoding import encode_places
from sparse_detr.records import FeaturePyramid

_NORM_GROUPS = 32
"""Group norm, since batches of 2 images an accelerator are too small for batch norm; 32 as the authors."""


class FeatureProjection(nn.Module):
    """Backbone maps to one row of tokens (Deformable DETR, appendix A.4).

    A 1x1 convolution for each backbone map. Each further level is a 3x3 convolution of stride 2: the first on
    the backbone's last raw map, the next ones on the projected map before. Fewer levels than maps take the coarsest.
    """

    def __init__(self, inputs: Sequence[int], channels: int, levels: int) -> None:
        super().__init__()
        inputs = inputs[-levels:]
        self.maps = len(inputs)
        projections = [_projection(nn.Conv2d(size, channels, 1)) for size in inputs]
        for size in (inputs[-1], *[channels] * levels)[: levels - len(inputs)]:
            projections.append(_projection(nn.Conv2d(size, channels, 3, stride=2, padding=1)))
        self.projections = nn.ModuleList(projections)
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))

    def forward(self, features: tuple[Float[Tensor, "B _ _ _"], ...], padding: Bool[Tensor, "B H W"]) -> FeaturePyramid:
        """Project, flatten and describe `features`; `padding` is that of the images, True outside them."""
        maps = self._project(features[-self.maps :])
        shapes = tuple((int(level.shape[2]), int(level.shape[3])) for level in maps)
        # Every level's padding is taken from the images, also the added one's.
        paddings = [functional.interpolate(padding[None].float(), size=shape)[0].bool() for shape in shapes]
        # At least float32, which the sines of places need; float64 in a model of float64.
        exact = torch.promote_types(self.level_embedding.dtype, torch.float32)
        positions = [
            encode_places(level, embedding.shape[0], exact) + embedding
            for level, embedding in zip(paddings, self.level_embedding, strict=True)
        ]
        return FeaturePyramid(
            tokens=torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1),
            position=torch.cat(positions, dim=1),
            padding=torch.cat([level.flatten(1) for level in paddings], dim=1),
            valid_ratios=torch.stack([_valid_ratio(level, exact) for level in paddings], dim=1),
            shapes=shapes,
        )

    def _project(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = []
        for projection, source in zip_longest(self.projections, features):
            if source is None:
                source = features[-1] if len(maps) == len(features) else maps[-1]
            maps.append(projection(source))
        return maps


def _projection(convolution: nn.Conv2d) -> nn.Sequential:
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, nn.GroupNorm(_NORM_GROUPS, convolution.out_channels))


def _valid_ratio(padding: Bool[Tensor, "B H W"], dtype: torch.dtype) -> Float[Tensor, "B 2"]:
    """Share of (width, height) that is image, along the first row and the first column."""
    width = (~padding[:, 0, :]).to(dtype).mean(1)
    height = (~padding[:, :, 0]).to(dtype).mean(1)
    return torch.stack((width, height), dim=-1)
