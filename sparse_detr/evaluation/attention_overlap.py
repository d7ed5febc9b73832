"""Quality of the kept tokens: the share of the decoder's attention that falls on them (the paper's Corr)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_detr.decoder_attention import attention_share, decoder_attention_map
from sparse_detr.records import Output


@torch.no_grad()
def attention_overlap(output: Output) -> Float[Tensor, "B sets"] | None:
    """Share of each image's decoder attention map that falls on the tokens which the encoder updated.

    Column 0 is over all levels, column 1 + l over level l; NaN where a level got no attention. Unlike the authors'
    figure in training, an image's rows past its own number do not count: they are never updated.

    Returns:
        None where the encoder was dense or attention is full: then no token is chosen, or there is no map. Ask the
        model for its attention with `with_auxiliary=True`.
    """
    if output.selection is None or output.decoder_attention is None:
        return None
    dam = decoder_attention_map(output.decoder_attention, output.shapes)
    kept, counts = output.selection.kept, output.selection.counts
    updated = torch.arange(kept.shape[1], device=kept.device) < counts[:, None]
    # Row 0 of an image is always updated; naming it twice adds nothing.
    return attention_share(dam, torch.where(updated, kept, kept[:, :1]), output.shapes)


@dataclass(slots=True, kw_only=True)
class OverlapMean:
    """Mean of `attention_overlap` over images, batch by batch; an image counts on the levels that got attention."""

    sums: list[float] = field(default_factory=list)
    """Sum of the shares: all levels, then each."""
    images: list[int] = field(default_factory=list)
    """Images behind each sum."""

    def add(self, shares: Float[Tensor, "B sets"] | None) -> None:
        """Take the images of a batch in; None (nothing to measure) changes nothing."""
        if shares is None:
            return
        values = shares.double().cpu()
        self._add(values.nansum(0).tolist(), values.isfinite().sum(0).tolist())

    def merge(self, others: Sequence[OverlapMean]) -> None:
        """Take in what others have gathered, as the other ranks."""
        for other in others:
            self._add(other.sums, other.images)

    def summary(self) -> dict[str, float]:
        """`corr` over all levels, `corr_0`, `corr_1`, ... of each; what no image has a share for is left out."""
        names = ("corr", *(f"corr_{level}" for level in range(len(self.sums) - 1)))
        rows = zip(names, self.sums, self.images, strict=False)
        return {name: total / images for name, total, images in rows if images}

    def _add(self, sums: Sequence[float], images: Sequence[int]) -> None:
        if not sums:
            return
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(sums), sums, strict=True)]
        self.images = [a + b for a, b in zip(self.images or [0] * len(images), images, strict=True)]
