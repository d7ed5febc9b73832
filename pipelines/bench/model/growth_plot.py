"""The picture of `growth`: operations, memory and time of an encoder layer over the side of the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.bench.model.encoder_run import EncoderRun, token_shapes
from pipelines.bench.model.growth import LIMIT_BYTES, Kind, attention_map_bytes, kinds, layer_operations

_SIDES = tuple(int(256 * 2 ** (step / 4)) for step in range(17))
_COLOURS = ("#9333ea", "#d8a4f8", "#e8590c", "#0f9d76", "#2563eb")
_GIB = 2**30


def draw(measured: Mapping[str, Mapping[int, EncoderRun]], picture: Path) -> None:
    """Write the picture: lines are formulas, points are measured, crosses ran out of memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    operations, memory, seconds = figure.subplots(1, 3)
    for (name, kind), colour in zip(kinds().items(), _COLOURS, strict=True):
        counted = [layer_operations(kind.config, side) / 1e9 for side in _SIDES]
        # Without the map the operations are those with it: dots on the same line.
        same = kind.config.attention == "full" and not kind.keeps_map
        operations.plot(_SIDES, counted, color=colour, linewidth=2, linestyle=":" if same else "-", label=name)
        _draw_memory(memory, kind, measured[name], colour)
        fitting = [(side, run.seconds) for side, run in measured[name].items() if run.seconds is not None]
        seconds.plot(*zip(*fitting, strict=True), color=colour, marker="o", linewidth=1.5)
    memory.axhline(LIMIT_BYTES / _GIB, color="#6b7785", linewidth=1)
    memory.text(_SIDES[0], LIMIT_BYTES / _GIB * 1.15, f"limit: {LIMIT_BYTES // _GIB} GiB", fontsize=8)
    _label(operations, "Operations by the formula, 10⁹")
    _label(memory, "Memory, GiB; dashed: the attention map alone")
    _label(seconds, "Measured processor time, s, one thread")
    figure.legend(loc="outside upper center", ncols=len(_COLOURS), frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def _draw_memory(axes: Any, kind: Kind, runs: Mapping[int, EncoderRun], colour: str) -> None:
    if kind.keeps_map:
        tokens = [sum(rows * columns for rows, columns in token_shapes(kind.config, side)) for side in _SIDES]
        needed = [attention_map_bytes(kind.config, count) / _GIB for count in tokens]
        axes.plot(_SIDES, needed, color=colour, linestyle="--", linewidth=1.2)
    fitting = [(side, run.peak_bytes / _GIB) for side, run in runs.items() if run.peak_bytes]
    axes.plot(*zip(*fitting, strict=True), color=colour, marker="o", linewidth=1.5)
    for side in (side for side, run in runs.items() if not run.fits):
        axes.plot(side, LIMIT_BYTES / _GIB, color=colour, marker="X", markersize=11)
        axes.annotate("out of memory", (side, LIMIT_BYTES / _GIB), xytext=(0, 14), textcoords="offset points",
                      ha="center", fontsize=8, color=colour)  # fmt: skip


def _label(axes: Any, title: str) -> None:
    ticks = (256, 512, 1024, 2048, 4096)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(230, 4500)
    axes.set_xlabel("side of the image, pixels")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(color="#e4e9ef")
    axes.spines[["top", "right"]].set_visible(False)
