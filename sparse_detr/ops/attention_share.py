"""How much of the decoder's attention falls on the kept tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_detr.records import Shapes


@torch.no_grad()
def attention_share(dam: Float[Tensor, "B T"], kept: Int[Tensor, "B K"], shapes: Shapes) -> Float[Tensor, "B sets"]:
    """Share of the decoder attention map that lies on kept tokens (the paper's Corr).

    Column 0 is over all levels, column 1 + l over level l. NaN where a level got no attention at all. All K kept
    tokens count, also those past an image's own number, as in the authors' code.
    """
    on_kept = torch.zeros_like(dam).scatter_(1, kept, dam.gather(1, kept))
    return _mass(on_kept, shapes) / _mass(dam, shapes)


def _mass(token_map: Tensor, shapes: Shapes) -> Tensor:
    levels = token_map.split_with_sizes([h * w for h, w in shapes], dim=1)
    return torch.stack([part.sum(1) for part in (token_map, *levels)], dim=1)
