from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipelines.detect.images import ImageFailure, ImageResult
from pipelines.detect.rows import SCHEMA, coco_entries, results_table, to_coco, to_supervision
from sparse_detr.errors import ConfigError
from sparse_detr.evaluation import coco_ap
from sparse_detr.records import Classes, Detections

CLASSES = Classes(names=("disc", "square", "star"), category_ids=(2, 5, 9))
FOUND = Detections(
    scores=torch.tensor([0.9, 0.4]),
    labels=torch.tensor([2, 0]),
    boxes=torch.tensor([[1.0, 2.0, 30.5, 40.0], [-0.5, 0.0, 10.0, 12.0]]),
)
NOTHING = Detections(scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4))
RESULTS = [
    ImageResult(index=0, key="a.jpg", size=(40, 50), detections=FOUND),
    ImageResult(index=1, key="b.jpg", failure=ImageFailure(stage="fetch", type="StorageError", message="gone")),
    ImageResult(index=2, key="c.jpg", size=(8, 9), detections=NOTHING),
]


def _table(classes: Classes | None = CLASSES, ids: tuple[int | None, ...] = (11, 12, 13)) -> pa.Table:
    return results_table(RESULTS, ids, root="s3://bucket/images/", classes=classes, fingerprint="f00d")


def test_rows_hold_what_was_found() -> None:
    table = _table()
    assert table.schema.equals(SCHEMA)
    table.validate(full=True)
    first, second, third = table.to_pylist()
    assert first["uri"] == "s3://bucket/images/a.jpg"
    assert (first["image_id"], first["height"], first["width"], first["error"]) == (11, 40, 50, None)
    assert [(d["label"], d["category_id"], d["name"]) for d in first["detections"]] == [(2, 9, "star"), (0, 2, "disc")]
    assert first["detections"][0]["box"] == [1.0, 2.0, 30.5, 40.0]
    assert first["detections"][1]["score"] == pytest.approx(0.4)
    assert second["error"] == {"stage": "fetch", "type": "StorageError", "message": "gone"}
    assert (second["height"], second["detections"]) == (None, [])
    assert (third["error"], third["detections"], third["fingerprint"]) == (None, [], "f00d")


def test_model_without_class_names_gives_indices() -> None:
    found = _table(classes=None, ids=(None, None, None)).to_pylist()[0]["detections"]
    assert [(d["category_id"], d["name"]) for d in found] == [(2, "2"), (0, "0")]


def test_block_without_any_detection() -> None:
    table = results_table(RESULTS[1:2], [None], root="/r", classes=CLASSES, fingerprint="f")
    assert table.to_pylist()[0]["detections"] == []


def test_coco_form_equals_that_of_the_evaluation() -> None:
    assert coco_entries(_table()) == coco_ap.coco_results(11, FOUND, CLASSES)


def test_a_row_to_coco() -> None:
    rows = _table().to_pylist()
    assert [entry for row in rows for entry in to_coco(row)] == coco_ap.coco_results(11, FOUND, CLASSES)
    assert to_coco(rows[1]) == []
    without = _table(ids=(None, None, None)).to_pylist()[0]
    with pytest.raises(ConfigError, match=r"image_id: s3://bucket/images/a\.jpg has none.*annotations"):
        to_coco(without)
    assert {entry["image_id"] for entry in to_coco(without | {"image_id": 7})} == {7}


def test_a_row_of_pandas_to_coco() -> None:
    frame = _table().to_pandas()
    entries = to_coco(frame.iloc[0].to_dict())
    assert [(entry["image_id"], entry["category_id"]) for entry in entries] == [(11, 9), (11, 2)]
    assert entries[0]["bbox"] == [1.0, 2.0, 29.5, 38.0]
    with pytest.raises(ConfigError, match="image_id"):
        to_coco(frame.iloc[0].to_dict() | {"image_id": float("nan")})


def test_a_row_to_supervision() -> None:
    supervision = pytest.importorskip("supervision", exc_type=ImportError)
    rows = _table().to_pylist()
    found = to_supervision(rows[0])
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, FOUND.boxes.numpy())
    np.testing.assert_allclose(found.confidence, FOUND.scores.numpy())
    assert found.class_id.tolist() == [2, 0]
    assert found["class_name"].tolist() == ["star", "disc"]
    assert found["category_id"].tolist() == [9, 2]
    assert found[found.confidence > 0.5]["class_name"].tolist() == ["star"]
    for row in rows[1:]:
        assert len(to_supervision(row)) == 0
        assert len(supervision.Detections.merge([found, to_supervision(row)])) == 2
    assert to_supervision(_table().to_pandas().iloc[0].to_dict()) == found


def test_without_supervision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match=r"pip install 'sparse-detr\[supervision\]'"):
        to_supervision(_table().to_pylist()[0])
