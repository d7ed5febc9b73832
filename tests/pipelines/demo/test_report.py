"""The report: one file with everything in it, true to its data, safe with whatever names its data has."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.demo.report import (
    Example,
    Link,
    Report,
    Step,
    Throughput,
    Trial,
    duration,
    png_uri,
    render,
    write_report,
)
from pipelines.evaluate.keep_ratios import RatioResult
from pipelines.predict.result import ErrorRow
from sparse_detr.evaluation.coco_ap import CocoMetrics

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
METRICS = CocoMetrics(
    **{field.name: 0.0 for field in fields(CocoMetrics) if field.name != "per_class"} | {"ap": 0.4, "ap50": 0.7},
    per_class={},
)
RATIO = RatioResult(keep_ratio=0.1, metrics=METRICS, detections=3, gflops=1.5, milliseconds=5.25, overlap={})
REPORT = Report(
    title="Shapes",
    subtitle="2 CPUs",
    headline={"AP": "0.512"},
    steps=(Step(name="Training", seconds=402.4, note="10 epochs"),),
    history=({"epoch": 1.0, "loss": 9.0}, {"epoch": 2.0, "loss": 4.0, "ap": 0.3, "ap50": 0.6}),
    keep_ratio=0.3,
    ratios=(RATIO,),
    trials=(
        Trial(name="a", params={"keep_ratio": 0.1, "weight": 1.0}, metrics={"ap": 0.41, "ap50": 0.71}),
        Trial(name="b", params={"keep_ratio": 0.5, "weight": 0.0}, metrics={}, best=False),
    ),
    examples=(Example(caption="0.jpg", pictures=(("detections", PIXELS), ("saliency", PIXELS))),),
    throughput=(Throughput(what="Training", images=24000, seconds=402, images_per_second=59.7),),
    broken=(
        ErrorRow(
            uri="s3://b/<script>alert(1)</script>.jpg", stage="decode", type="ImageError", message="no bytes & no hope"
        ),
    ),
    places=(Link(what="Model", uri="/runs/model"),),
    commands={"Look": "mlflow ui"},
)


class _Elements(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _sources(page: _Elements) -> list[str]:
    return [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]


def test_nothing_is_loaded_from_outside() -> None:
    text = render(REPORT)
    page = _Elements(text)
    assert all(source.startswith("data:image/") for source in _sources(page))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import", text)
    assert not any("href" in attributes for _, attributes in page.tags)


def test_every_picture_is_in_it_pixel_for_pixel() -> None:
    pictures = [s for s in _sources(_Elements(render(REPORT))) if s.startswith("data:image/png")]
    assert len(pictures) == 2
    decoded = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
    assert np.array_equal(np.asarray(decoded), PIXELS)


def test_the_numbers_are_in_it() -> None:
    text = _Elements(render(REPORT)).text
    for expected in ("0.512", "6 min 42 s", "24,000", "59.7", "0.410", "0.710", "5.2", "/runs/model", "mlflow ui"):
        assert expected in text
    assert "failed" in text, "a trial without metrics must not look like a result"


def test_names_from_outside_stay_text() -> None:
    text = render(REPORT)
    assert "<script" not in text
    assert "s3://b/<script>alert(1)</script>.jpg" in _Elements(text).text
    assert "no bytes & no hope" in _Elements(text).text


def test_a_report_without_results_still_renders() -> None:
    bare = replace(
        REPORT, history=(), ratios=(), trials=(), examples=(), throughput=(), broken=(), steps=(), commands={}
    )
    page = _Elements(render(bare))
    assert _sources(page) == []
    assert "Sweep" not in page.text


def test_the_same_data_gives_the_same_bytes() -> None:
    assert render(REPORT) == render(REPORT)


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    broken = replace(REPORT, examples=(Example(caption="x", pictures=(("bad", np.zeros((2, 2, 7), np.uint8)),)),))
    with pytest.raises(TypeError):
        write_report(path, broken)
    assert path.read_text() == "old"
    write_report(path, REPORT)
    assert path.read_text(encoding="utf-8") == render(REPORT)
    assert [child.name for child in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (402.4, "6 min 42 s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_png_uri_keeps_pixels() -> None:
    data = base64.b64decode(png_uri(PIXELS).partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), PIXELS)
