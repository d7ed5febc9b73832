from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from pipelines.detect.images import ImageFailure, ImageResult
from pipelines.detect.rows import SCHEMA, coco_entries, results_table
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
