"""Ids that go back to the COCO evaluation, and images that must be there."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparse_detr.data.coco import index_coco, read_coco
from sparse_detr.data.coco_index import CocoIndex, verify_images, write_coco
from sparse_detr.errors import AnnotationError, StorageError
from sparse_detr.storage.location import locate

CATEGORIES = [{"id": 5, "name": "cell"}]


def index_of(*names: str) -> CocoIndex:
    images = [{"id": i, "file_name": name, "height": 10, "width": 20} for i, name in enumerate(names)]
    annotation = {"id": 4, "image_id": 0, "category_id": 5, "bbox": [1, 2, 30, 4], "area": 3, "iscrowd": 1}
    data = {"images": images, "annotations": [annotation], "categories": CATEGORIES}
    return index_coco(data, source="cells.json")


def test_ground_truth_is_the_clipped_file() -> None:
    assert index_of("a.jpg").ground_truth() == {
        "info": {},
        "images": [{"id": 0, "file_name": "a.jpg", "height": 10, "width": 20}],
        "annotations": [
            {"id": 4, "image_id": 0, "category_id": 5, "bbox": [1, 2, 19, 4], "area": 3, "iscrowd": 1},
        ],
        "categories": CATEGORIES,
    }


def test_ground_truth_survives_json_and_reading(tmp_path: Path) -> None:
    index = index_of("a.jpg", "b.jpg")
    write_coco(tmp_path / "again.json", index.ground_truth())
    again = read_coco(str(tmp_path / "again.json"))
    assert again.ground_truth() == index.ground_truth()
    assert again.classes == index.classes


def test_evaluation_with_it_gives_the_published_numbers(shared: Path) -> None:
    folder = shared / "data" / "coco_eval"
    found = json.loads((folder / "detections.json").read_text())
    stats = evaluated(read_coco(folder / "ground_truth.json").ground_truth(), found)
    published = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    np.testing.assert_array_equal(np.round(stats, 3), published)
    original = evaluated(json.loads((folder / "ground_truth.json").read_text()), found)
    np.testing.assert_allclose(stats, original, atol=1e-9)


def evaluated(truth: dict[str, Any], found: list[dict[str, Any]]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return np.asarray(run.stats)


def test_images_that_are_there_pass(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.jpg"):
        locate(tmp_path).child(name).write_bytes(b"x")
    verify_images(index_of("a.jpg"), tmp_path)
    verify_images(index_of("a.jpg", "deep/b.jpg"), str(tmp_path))


def test_missing_images_are_named_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    names = ["a.jpg", *(f"gone{i}.jpg" for i in range(7))]
    with pytest.raises(
        AnnotationError, match=r"cells\.json: 7 of 8 images are not in .*: gone0\.jpg, .*gone4\.jpg, \.\.\."
    ) as e:
        verify_images(index_of(*names), tmp_path)
    assert "gone5" not in str(e.value)
    assert str(tmp_path) in str(e.value)


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        verify_images(index_of("a.jpg"), tmp_path / "nowhere")


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_coco(tmp_path / "x.json", {"area": float("nan")})
    assert not (tmp_path / "x.json").exists()
