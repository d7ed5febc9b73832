"""How well the kept tokens cover what the decoder looks at, over many images (the paper's Corr)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_detr.ops.attention_share import attention_share
from sparse_detr.records import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapReport:
    """Mean share of the decoder attention map on kept tokens, from 0 to 1."""

    overall: float
    """Over the tokens of all levels; NaN without images."""
    levels: tuple[float, ...]
    """For each level, fine to coarse, over the images in which the level got attention; NaN where none did."""
    images: int


class AttentionOverlap:
    """Collects the overlap image by image; `report` gives the means.

    The decoder attention map comes from `sparse_detr.losses.attention_map.decoder_attention_map`.
    """

    def __init__(self) -> None:
        self._shares: list[Tensor] = []

    def add(self, dam: Float[Tensor, "B T"], kept: Int[Tensor, "B K"], shapes: Shapes) -> None:
        """Take in a batch: its decoder attention map and the kept tokens; every batch has the same levels."""
        self._shares.append(attention_share(dam, kept, shapes).double().cpu())

    def report(self) -> OverlapReport:
        """Means over all images so far."""
        if not self._shares:
            return OverlapReport(overall=float("nan"), levels=(), images=0)
        shares = torch.cat(self._shares)
        overall, *levels = shares.nanmean(0).tolist()
        return OverlapReport(overall=overall, levels=tuple(levels), images=len(shares))
