"""Options of `sparse-detr cost`."""

from __future__ import annotations

from dataclasses import dataclass

from sparse_detr.cost.latency import LatencyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig(LatencyConfig):
    """For which image, and how to measure."""

    recipe: str
    """Name of a recipe, or path or URI of a model folder."""
    height: int | None = None
    """Pixels of the image after resizing; by default the short side that the recipe, or the model, is evaluated at."""
    width: int | None = None
    """Likewise; by default 4/3 of that short side, within the evaluation's longest side."""
    keep_ratio: float | None = None
    """Share of the tokens to update instead of the model's own; 1 is the dense encoder."""
    latency: bool = True
    """Also run the model and measure; otherwise count alone."""
