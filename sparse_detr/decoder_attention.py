"""The decoder attention map (DAM), and how much of it falls on kept tokens (paper sections 3.2 and 4.3, appendix A.2).

The DAM is how much the decoder looks at each token: the label of the scoring network. Its share on the kept tokens is
the paper's Corr, which tells how well they were chosen.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_detr.records import DecoderAttention, Shapes


@torch.no_grad()
def decoder_attention_map(attention: DecoderAttention, shapes: Shapes) -> Float[Tensor, "B T"]:
    """Attention that every token receives, summed over decoder layers, heads, queries and points.

    Each attention weight is spread over the four tokens around its sampling point with bilinear weights. What
    falls outside a level is lost; the rest is not scaled up. No gradient.

    Half a pixel: the authors place a point at `location * size`, where the sampler reads at `location * size - 0.5`
    (token centres lie at half pixels). Their map is therefore shifted by half a token to the right and down against
    what the decoder really reads. Published weights were trained with this target, so we keep it.
    """
    batch = attention.weights.shape[0]
    sizes = attention.locations.new_tensor([(w, h) for h, w in shapes])[:, None]
    starts = torch.tensor([0, *(h * w for h, w in shapes)], device=sizes.device).cumsum(0)
    exact = torch.promote_types(attention.weights.dtype, torch.float32)
    x, y = (attention.locations.to(exact) * sizes).unbind(-1)
    weights = attention.weights.to(exact)
    left, top = x.floor(), y.floor()
    right, bottom = x - left, y - top
    width, height = sizes.unbind(-1)
    dam = weights.new_zeros((batch, sum(h * w for h, w in shapes)))
    for column, row, corner_weight in (
        (left, top, (1 - right) * (1 - bottom)),
        (left + 1, top, right * (1 - bottom)),
        (left, top + 1, (1 - right) * bottom),
        (left + 1, top + 1, right * bottom),
    ):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        token = torch.where(inside, row * width + column, 0.0).long() + starts[:-1, None]
        dam.scatter_add_(1, token.flatten(1), (corner_weight * weights * inside).flatten(1))
    return dam


@torch.no_grad()
def attention_share(dam: Float[Tensor, "B T"], kept: Int[Tensor, "B K"], shapes: Shapes) -> Float[Tensor, "B sets"]:
    """Share of the decoder attention map that falls on kept tokens (the paper's Corr).

    Column 0 is over all levels, column 1 + l over level l. NaN where a level got no attention at all. All K kept
    tokens count, also those past an image's own number, as in the authors' code.
    """
    on_kept = torch.zeros_like(dam).scatter_(1, kept, dam.gather(1, kept))
    return _mass(on_kept, shapes) / _mass(dam, shapes)


def _mass(token_map: Tensor, shapes: Shapes) -> Tensor:
    levels = token_map.split_with_sizes([h * w for h, w in shapes], dim=1)
    return torch.stack([part.sum(1) for part in (token_map, *levels)], dim=1)
