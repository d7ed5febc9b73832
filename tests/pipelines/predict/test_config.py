from __future__ import annotations

import pickle
from typing import Any

import pytest

from pipelines.predict.config import PredictConfig
from sparse_detr.errors import ConfigError
from sparse_detr.records import ImageSize

BASE: dict[str, Any] = {"model": "m", "images": "i", "output": "o"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("images", ""),
        ("output", ""),
        ("short_side", 0),
        ("max_side", 0),
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
        ("error_budget", "101%"),
        ("error_budget", "-1"),
        ("error_budget", "few"),
        ("limit", 0),
        ("sample", 0),
        ("tile", 16),
        ("store_patience", -1.0),
        ("image_seconds", 0.0),
        ("existing", "append"),
        ("table", "hudi"),
        ("table_name", "vision.detections"),
        ("table_uri", "/data"),
    ],
)
def test_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        PredictConfig(**{**BASE, field: value})


def test_coco_results_need_annotations() -> None:
    with pytest.raises(ConfigError, match="annotations"):
        PredictConfig(**BASE, coco_results=True)
    assert PredictConfig(**BASE, coco_results=True, annotations="a.json").coco_results


def test_what_excludes_each_other_is_refused() -> None:
    with pytest.raises(ConfigError, match="limit: 5 beside sample: 6"):
        PredictConfig(**BASE, limit=5, sample=6)
    with pytest.raises(ConfigError, match="retry_errors: True with existing: 'overwrite'"):
        PredictConfig(**BASE, retry_errors=True, existing="overwrite")
    with pytest.raises(ConfigError, match="overlap: 1"):
        PredictConfig(**BASE, tile=64, overlap=1.0)


def test_a_run_needs_an_output_and_a_look_none() -> None:
    look: dict[str, Any] = {"model": "m", "images": "i"}
    with pytest.raises(ConfigError, match=r"output: it is empty; give a folder.*draw.*dry_run"):
        PredictConfig(**look)
    assert PredictConfig(**look, dry_run=True).output == ""
    assert PredictConfig(**look, draw="d").output == ""
    with pytest.raises(ConfigError, match="draw: it is empty"):
        PredictConfig(**look, draw="")
    with pytest.raises(ConfigError, match=r"output: o beside draw: d"):
        PredictConfig(**look, draw="d", output="o")
    with pytest.raises(ConfigError, match=r"csv: True beside draw: d"):
        PredictConfig(**look, draw="d", csv=True)


def test_config_travels_to_workers() -> None:
    config = PredictConfig(**BASE, keep_ratio=0.3)
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_image_size_is_the_given_one_else_the_models_else_that_of_coco() -> None:
    own = ImageSize(short_side=128, max_side=160)
    assert PredictConfig(**BASE).image_size(own) == own
    assert PredictConfig(**BASE).image_size(None) == ImageSize(short_side=800, max_side=1333)
    assert PredictConfig(**BASE, short_side=96).image_size(own) == ImageSize(short_side=96, max_side=160)
    assert PredictConfig(**BASE, short_side=64, max_side=64).image_size(own) == ImageSize(short_side=64, max_side=64)


def test_sides_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_side: 100 is less than short_side: 101"):
        PredictConfig(**BASE, short_side=101, max_side=100)
    with pytest.raises(ConfigError, match="max_side: 160 is less than short_side: 200"):
        PredictConfig(**BASE, short_side=200).image_size(ImageSize(short_side=128, max_side=160))


def test_an_iceberg_table_has_a_namespace() -> None:
    options = {"model": "m", "images": "i", "output": "o", "table": "iceberg"}
    assert PredictConfig(**options, table_name="a.b.c").table_name == "a.b.c"  # type: ignore[arg-type]
    for name in (None, "", "detections", "vision.", ".detections"):
        with pytest.raises(ConfigError, match="table_name"):
            PredictConfig(**options, table_name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [{"draw": "d"}, {"dry_run": True}])
def test_a_table_needs_an_output(other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="table"):
        PredictConfig(model="m", images="i", table="delta", **other)  # type: ignore[arg-type]
