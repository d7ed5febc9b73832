"""The report's curves, each an SVG as a data URI: sharp at any size, nothing to load."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK, FAINT, GRID = "#1f2933", "#6b7785", "#e4e9ef"
COLOURS = ("#2563eb", "#e8590c", "#0f9d76", "#9333ea", "#c2255c", "#b7791f")

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 11,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.color": INK,
}
"""Matplotlib's settings for every chart of the product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a chart."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    line: bool = True
    """False draws the points alone."""


def curves(history: Sequence[Mapping[str, float]], names: Mapping[str, str], x: str = "epoch") -> tuple[Curve, ...]:
    """Curves of some metrics over a history; epochs that lack a metric are left out, and so are empty curves.

    Args:
        names: metric -> name in the legend.
        x: metric of the horizontal axis; where it is absent, rows count from 1.
    """
    found = []
    for metric, name in names.items():
        points = [(row.get(x, place), row[metric]) for place, row in enumerate(history, start=1) if metric in row]
        if points:
            found.append(Curve(name=name, x=tuple(p[0] for p in points), y=tuple(p[1] for p in points)))
    return tuple(found)


def line_chart(
    lines: Sequence[Curve], *, x_label: str, y_label: str, from_zero: bool = False, whole_x: bool = False
) -> str:
    """Lines with points, their names at the top, as a data URI.

    Args:
        from_zero: the vertical axis starts at 0.
        whole_x: ticks at whole numbers alone.
    """
    chart = line_svg(lines, x_label=x_label, y_label=y_label, from_zero=from_zero, whole_x=whole_x)
    return _data_uri(chart)


def line_svg(
    lines: Sequence[Curve], *, x_label: str, y_label: str, from_zero: bool = False, whole_x: bool = False
) -> bytes:
    """The same as an SVG file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for number, curve in enumerate(lines):
            colour = COLOURS[number % len(COLOURS)]
            style: dict[str, Any] = {"linewidth": 2.2} if curve.line else {"linestyle": "none", "markersize": 8}
            axes.plot(curve.x, curve.y, marker="o", color=colour, label=curve.name, **({"markersize": 4} | style))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.tick_params(length=0)
        if from_zero:
            axes.set_ylim(bottom=0)
        if whole_x:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1:
            spacing = {"columnspacing": 1.0, "handlelength": 1.2, "borderaxespad": 0.2}
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(lines), frameon=False, **spacing)
        return _svg(figure)


def bar_chart(values: Mapping[str, float], *, unit: str) -> str:
    """Horizontal bars in the given order, from the top, each with its value, as a data URI."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(6.2, 0.5 + 0.42 * len(values)), layout="constrained")
        axes = figure.add_subplot()
        bars = axes.barh(list(values), list(values.values()), color=COLOURS[0], height=0.6)
        axes.bar_label(bars, labels=[f"{value:,.0f} {unit}" for value in values.values()], padding=5)
        axes.invert_yaxis()
        axes.margins(x=0.16)
        axes.xaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=INK)
        return _data_uri(_svg(figure))


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _svg(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Neither date nor random ids: the same data gives the same bytes.
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "sparse-detr"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()
