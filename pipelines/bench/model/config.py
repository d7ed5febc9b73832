"""Options of `sparse-detr bench table`, `trace` and `growth`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TableConfig:
    """The published table of cost beside the formula, and what the authors' code runs beyond ours, in Markdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceConfig:
    """Operators, rows and sampling maps of every part of a small model, by hooks, in Markdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthConfig:
    """Operations, memory and time of one encoder layer over the side of the image: a table in Markdown and a plot."""

    results: Path = Path("runs/growth.json")
    """File of what was measured; what it holds is not measured again."""
    plot: Path = Path("runs/growth.png")
    """The plot, a PNG; one that is there is replaced."""
