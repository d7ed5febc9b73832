from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.detect.rows import SCHEMA
from pipelines.evaluate.keep_ratios import RatioResult, RatioTally, ratio_plot, ratio_rows
from pipelines.evaluate.measures import MEASURES_SCHEMA
from sparse_detr.cost.model import model_cost
from sparse_detr.evaluation.coco_ap import CocoMetrics
from sparse_detr.model.config import ModelConfig

TRUTH = {
    "images": [{"id": number, "height": 100, "width": 100} for number in (1, 2)],
    "categories": [{"id": 7, "name": "disc"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10.0, 10.0, 50.0, 50.0], "area": 2500.0, "iscrowd": 0}
    ],
}


def _row(image_id: int, seconds: float, size: tuple[int, int], overlap: list[float]) -> dict[str, object]:
    found = {"label": 0, "category_id": 3, "name": "disc", "score": 0.9, "box": [10.0, 10.0, 60.0, 60.0]}
    return {
        "uri": "u", "key": "k", "image_id": image_id, "height": 100, "width": 100, "error": None, "fingerprint": "",
        "detections": [found] if image_id == 1 else [], "keep_ratio": 0.3, "seconds": seconds,
        "input_height": size[0], "input_width": size[1], "overlap": overlap,
    }  # fmt: skip


def _metrics(ap: float) -> CocoMetrics:
    unknown = dict.fromkeys(("ap_small", "ap_medium", "ap_large", "ar_small", "ar_medium", "ar_large"), -1.0)
    return CocoMetrics(ap=ap, ap50=ap, ap75=ap, ar1=0.0, ar10=0.0, ar100=0.0, per_class={}, **unknown)


def _result(ratio: float, overlap: dict[str, float]) -> RatioResult:
    return RatioResult(keep_ratio=ratio, metrics=_metrics(0.4 + ratio / 10), detections=5, gflops=10.0 * ratio,
                       milliseconds=100.0 * ratio, overlap=overlap)  # fmt: skip


def test_tally_sums_up_precision_cost_time_and_corr() -> None:
    rows = [
        _row(1, 0.010, (320, 480), [0.5, 0.25, float("nan")]),
        _row(2, 0.020, (480, 320), [0.7, 0.75, 0.5]),
        _row(2, 0.900, (480, 320), []),
    ]
    tally = RatioTally(keep_ratio=0.3)
    tally.add(pa.Table.from_pylist(rows[:2], schema=pa.schema([*SCHEMA, *MEASURES_SCHEMA])), {3: 7})
    tally.add(pa.Table.from_pylist(rows[2:], schema=pa.schema([*SCHEMA, *MEASURES_SCHEMA])), {3: 7})
    config = ModelConfig()
    result = tally.result(TRUTH, config)
    assert result.metrics.ap == pytest.approx(1.0)
    assert result.detections == 1
    assert result.milliseconds == pytest.approx(20.0)  # the median: one slow image counts little
    costs = [model_cost(config, *size, 0.3).whole.total for size in ((320, 480), (480, 320), (480, 320))]
    assert result.gflops == pytest.approx(np.mean(costs) / 1e9)
    assert result.overlap == pytest.approx({"corr": 0.6, "corr_0": 0.5, "corr_1": 0.5})


def test_rows_have_a_column_for_what_any_of_them_knows() -> None:
    rows = ratio_rows([_result(0.1, {"corr": 0.5}), _result(1.0, {})])
    assert rows[0] == {"ratio": "0.1", "AP": "0.410", "AP50": "0.410", "GFLOPs": "1", "ms": "10",
                       "Corr": "0.500"}  # fmt: skip
    assert rows[1]["Corr"] == "-"
    assert "Corr" not in ratio_rows([_result(1.0, {})])[0]


def test_plot_is_a_png_with_ink() -> None:
    with Image.open(io.BytesIO(ratio_plot([_result(1.0, {}), _result(0.1, {})]))) as plot:
        assert plot.format == "PNG"
        pixels = np.asarray(plot.convert("L"))
    assert pixels.shape[1] > 1000
    assert (pixels < 200).mean() > 0.005
