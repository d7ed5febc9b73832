from __future__ import annotations

import pickle
from typing import Any

import pytest

from pipelines.predict.config import PredictConfig
from sparse_detr.errors import ConfigError

BASE: dict[str, Any] = {"model": "m", "images": "i", "output": "o"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("images", ""),
        ("output", ""),
        ("short_side", 0),
        ("max_side", 100),
        ("max_detections", 0),
        ("batch_size", 0),
        ("workers", 0),
        ("cpus_per_worker", 0.0),
        ("cpus_per_worker", float("nan")),
        ("device", "tpu"),
        ("fetch_threads", 0),
        ("images_per_block", 0),
        ("keep_ratio", 0.0),
        ("keep_ratio", 1.5),
        ("score_threshold", 1.1),
        ("max_error_share", -0.1),
        ("max_errors", -1),
    ],
)
def test_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        PredictConfig(**{**BASE, field: value})


def test_coco_results_need_annotations() -> None:
    with pytest.raises(ConfigError, match="annotations"):
        PredictConfig(**BASE, coco_results=True)
    assert PredictConfig(**BASE, coco_results=True, annotations="a.json").coco_results


def test_config_travels_to_workers() -> None:
    config = PredictConfig(**BASE, keep_ratio=0.3)
    assert pickle.loads(pickle.dumps(config)) == config
