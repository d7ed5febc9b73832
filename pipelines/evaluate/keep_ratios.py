"""Results of an evaluation at each keep ratio: precision, cost, time, and how well the kept tokens were chosen."""

from __future__ import annotations

import io
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch

from pipelines.detect.rows import coco_entries
from pipelines.evaluate.categories import translate_results
from sparse_detr.cost.model import model_cost
from sparse_detr.evaluation.attention_overlap import OverlapMean
from sparse_detr.evaluation.coco_ap import CocoMetrics, evaluate_coco
from sparse_detr.model.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioResult:
    """One row of the table over keep ratios."""

    keep_ratio: float
    metrics: CocoMetrics
    detections: int
    gflops: float
    """Billions of multiply-adds of one image, by the formula of `model_cost`: mean over the images as they were
    resized."""
    milliseconds: float
    """Time of the model's forward for one image, fetching, decoding and drawing boxes left out: the median over the
    images, each of which counts with its batch's time over the batch's images. All ratios take turns on every batch,
    so whatever else the machine does slows them alike; several workers on one machine slow each other."""
    overlap: Mapping[str, float]
    """`corr`, `corr_0`, ...: mean share of the decoder's attention on kept tokens, over all levels and on each. Empty
    where it was not asked for, and for a dense encoder."""


@dataclass(slots=True, kw_only=True)
class RatioTally:
    """Gathers the rows of one keep ratio."""

    keep_ratio: float
    results: list[dict[str, Any]] = field(default_factory=list)
    """Entries of a COCO results file."""
    _seconds: list[float] = field(default_factory=list)
    _sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    _overlap: OverlapMean = field(default_factory=OverlapMean)

    def add(self, rows: pa.Table, category_of: dict[int, int]) -> None:
        """Take in rows with measures, all of this ratio."""
        self.results += translate_results(coco_entries(rows), category_of)
        self._seconds += rows.column("seconds").to_pylist()
        heights, widths = rows.column("input_height").to_pylist(), rows.column("input_width").to_pylist()
        self._sizes.update(zip(heights, widths, strict=True))
        shares = [row for row in rows.column("overlap").to_pylist() if row]
        self._overlap.add(torch.tensor(shares, dtype=torch.float64) if shares else None)

    def result(self, ground_truth: Mapping[str, Any], model: ModelConfig) -> RatioResult:
        """Compare with the truth and sum up."""
        costs = [
            images * model_cost(model, height, width, self.keep_ratio).whole.total
            for (height, width), images in self._sizes.items()
        ]
        return RatioResult(
            keep_ratio=self.keep_ratio,
            metrics=evaluate_coco(ground_truth, self.results),
            detections=len(self.results),
            gflops=sum(costs) / self._sizes.total() / 1e9,
            milliseconds=1000 * statistics.median(self._seconds),
            overlap=self._overlap.summary(),
        )


def ratio_rows(results: Sequence[RatioResult]) -> list[dict[str, str]]:
    """The table as text, a row each; a column of which no row knows anything is left out."""
    rows = []
    for one in results:
        row = {
            "ratio": f"{one.keep_ratio:g}",
            "AP": f"{one.metrics.ap:.3f}",
            "AP50": f"{one.metrics.ap50:.3f}",
            "GFLOPs": f"{one.gflops:.4g}",
            "ms": f"{one.milliseconds:.4g}",
        }
        rows.append(row | {name.capitalize().replace("_", " "): f"{share:.3f}" for name, share in one.overlap.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "-") for name in names} for row in rows]


def ratio_plot(results: Sequence[RatioResult]) -> bytes:
    """AP against GFLOPs and against time, a point for each keep ratio with the ratio beside it, as a PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    from sparse_detr.visualize.charts import COLOURS, STYLE

    rows = sorted(results, key=lambda one: one.keep_ratio)
    axes_of = (
        ("multiply-adds of one image, billions", [one.gflops for one in rows], COLOURS[0]),
        ("forward of one image, milliseconds", [one.milliseconds for one in rows], COLOURS[1]),
    )
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained", dpi=150)
        plots = figure.subplots(1, 2, sharey=True)
        for axes, (label, x, colour) in zip(plots, axes_of, strict=True):
            axes.plot(x, [one.metrics.ap for one in rows], marker="o", color=colour, linewidth=2.2)
            for one, place in zip(rows, x, strict=True):
                axes.annotate(
                    f"{one.keep_ratio:g}",
                    (place, one.metrics.ap),
                    xytext=(-5, 6),
                    textcoords="offset points",
                    ha="right",
                    fontsize=10,
                    path_effects=[withStroke(linewidth=3, foreground="white")],
                )
            axes.set_xlabel(label)
            axes.margins(x=0.08, y=0.16)
            axes.tick_params(length=0)
        plots[0].set_ylabel("AP")
        figure.suptitle("One model at several keep ratios", x=0.01, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
