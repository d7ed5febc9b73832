"""Charts are SVG with the data's own words in them."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

from sparse_detr.visualize.charts import Curve, bar_chart, curves, line_chart

HISTORY = ({"epoch": 1.0, "loss": 9.0}, {"epoch": 2.0, "loss": 4.0, "ap": 0.3, "ap50": 0.6})


def test_charts_are_svg_with_the_data_in_it() -> None:
    uri = line_chart(curves(HISTORY, {"loss": "total", "ap": "AP"}), x_label="epoch", y_label="value")
    root = ElementTree.fromstring(base64.b64decode(uri.partition(",")[2]))
    words = {element.text for element in root.iter() if element.text}
    assert {"epoch", "value", "total", "AP"} <= words
    bars = bar_chart({"Training": 402.4}, unit="s")
    assert b"402 s" in base64.b64decode(bars.partition(",")[2])


def test_curves_skip_epochs_without_the_metric() -> None:
    (curve,) = curves(HISTORY, {"ap": "AP", "ap75": "AP75"})
    assert curve == Curve(name="AP", x=(2.0,), y=(0.3,))
