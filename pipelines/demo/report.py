"""The demo's report: one HTML file with everything inside it, so that it opens offline and can be sent around."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.evaluate.keep_ratios import RatioResult
from pipelines.predict.result import ErrorRow
from sparse_detr.visualize.charts import Curve, bar_chart, curves, line_chart

TEMPLATE = "report.html.jinja"

_LOSS = {"loss": "weighted sum of all terms"}
_TERMS = {
    "loss_ce": "classes",
    "loss_bbox": "boxes (L1)",
    "loss_giou": "boxes (GIoU)",
    "loss_mask_prediction": "saliency",
}
_OVERLAP = {"corr_mask_attn_map_dec_all": "share of decoder attention"}
_PRECISION = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the demo."""

    name: str
    seconds: float
    note: str = ""
    """The outcome, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial of the sweep."""

    name: str
    params: Mapping[str, float]
    metrics: Mapping[str, float]
    best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A validation image, and what the detector saw in it."""

    caption: str
    pictures: tuple[tuple[str, npt.NDArray[np.uint8]], ...]
    """(title, RGB pixels) side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Speed of a step."""

    what: str
    images: int
    seconds: float
    images_per_second: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A result, and where it is."""

    what: str
    uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that the report shows."""

    title: str
    subtitle: str
    """Versions, date and machine of the run."""
    headline: Mapping[str, str]
    """The few numbers that matter, as text."""
    steps: tuple[Step, ...]
    history: tuple[Mapping[str, float], ...]
    """Metrics of each epoch of the training."""
    keep_ratio: float
    """The ratio that the model was trained with."""
    ratios: tuple[RatioResult, ...]
    trials: tuple[Trial, ...]
    examples: tuple[Example, ...]
    throughput: tuple[Throughput, ...]
    broken: tuple[ErrorRow, ...]
    places: tuple[Link, ...]
    commands: Mapping[str, str]
    """Next steps, each with its command."""


def render(report: Report) -> str:
    """The report as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipelines.demo", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = png_uri
    environment.filters["duration"] = duration
    return environment.get_template(TEMPLATE).render(report=report, charts=_charts(report))


def write_report(path: Path, report: Report) -> None:
    """Render into a file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(render(report), encoding="utf-8")
    part.replace(path)


def png_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """An RGB picture `[H, W, 3]` as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 1 min 05 s."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def _charts(report: Report) -> dict[str, Any]:
    """Data URIs of the charts that there is data for; None where there is none."""
    return {
        "loss": _over_epochs(report, _LOSS, "loss"),
        "overlap": _over_epochs(report, _OVERLAP, "share of decoder attention"),
        "terms": _over_epochs(report, _TERMS, "unweighted loss"),
        "ap": _over_epochs(report, _PRECISION, "validation precision"),
        "ratio": _ratio_chart(report),
        "steps": bar_chart({step.name: step.seconds for step in report.steps}, unit="s") if report.steps else None,
    }


def _over_epochs(report: Report, names: Mapping[str, str], y_label: str) -> str | None:
    lines = curves(report.history, names)
    return line_chart(lines, x_label="epoch", y_label=y_label, from_zero=True, whole_x=True) if lines else None


def _ratio_chart(report: Report) -> str | None:
    points = sorted(report.ratios, key=lambda point: point.keep_ratio)
    if not points:
        return None
    x = tuple(point.keep_ratio for point in points)
    lines = [
        Curve(name="AP", x=x, y=tuple(point.metrics.ap for point in points)),
        Curve(name="AP50", x=x, y=tuple(point.metrics.ap50 for point in points)),
    ]
    trials = [trial for trial in report.trials if {"keep_ratio"} <= set(trial.params) and "ap" in trial.metrics]
    if trials:
        ratios = tuple(trial.params["keep_ratio"] for trial in trials)
        found = tuple(trial.metrics["ap"] for trial in trials)
        lines.append(Curve(name="AP of the sweep's trials", x=ratios, y=found, line=False))
    return line_chart(lines, x_label="keep ratio", y_label="validation precision", from_zero=True)
