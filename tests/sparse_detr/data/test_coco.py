"""COCO files as they are in the world: labels, crowds, and every way to be wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_detr.data.coco import index_coco, read_coco
from sparse_detr.errors import AnnotationError, StorageError
from sparse_detr.records import Classes
from sparse_detr.weights.authors.coco_classes import coco_91_classes

Json = dict[str, Any]

SOUND: Json = {
    "images": [
        {"id": 7, "file_name": "b.jpg", "height": 50, "width": 100},
        {"id": 3, "file_name": "a.jpg", "height": 80, "width": 60},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 90, "bbox": [10, 20, 30, 40], "area": 900.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 18, "bbox": [1.5, 2.5, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 9, "image_id": 3, "category_id": 18, "bbox": [0, 0, 60, 80], "area": 4000, "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}],
}


def changed(change: Callable[[Json], object]) -> Json:
    data = copy.deepcopy(SOUND)
    change(data)
    return data


def with_box(*box: object) -> Json:
    return changed(lambda d: d["annotations"][0].update(bbox=list(box)))


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    def read_text(data: Json | str | bytes, **options: Any) -> Any:
        path = tmp_path / "instances.json"
        raw = data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode()
        path.write_bytes(raw)
        return read_coco(path, **options)

    return read_text


def test_ids_with_gaps_become_contiguous_labels(read: Callable[..., Any]) -> None:
    index = read(SOUND)
    assert index.classes == Classes(names=("dog", "bottle", "toothbrush"), category_ids=(18, 44, 90))
    second = index.images[1]
    assert (second.id, second.file_name, second.height, second.width) == (3, "a.jpg", 80, 60)
    np.testing.assert_array_equal(second.labels, [2, 0])
    np.testing.assert_array_equal(second.boxes, [[10, 20, 40, 60], [0, 0, 60, 80]])
    np.testing.assert_array_equal(second.areas, [900.5, 4000])
    np.testing.assert_array_equal(second.crowd, [False, True])
    np.testing.assert_array_equal(second.annotation_ids, [1, 9])
    assert index.dropped == ()
    assert index.source.endswith("instances.json")


def test_an_image_without_objects_stays(read: Callable[..., Any]) -> None:
    index = read(changed(lambda d: d["annotations"].clear()))
    assert [image.boxes.shape for image in index.images] == [(0, 4), (0, 4)]


def test_area_and_iscrowd_may_be_absent(read: Callable[..., Any]) -> None:
    def strip(data: Json) -> None:
        for annotation in data["annotations"]:
            del annotation["area"], annotation["iscrowd"]

    image = read(changed(strip)).images[1]
    np.testing.assert_array_equal(image.areas, [1200, 4800])
    assert not image.crowd.any()


@pytest.mark.parametrize("area", [float("nan"), -1, 0, "large", None])
def test_an_area_that_is_none_is_the_boxs(read: Callable[..., Any], area: object) -> None:
    assert read(changed(lambda d: d["annotations"][0].update(area=area))).images[1].areas[0] == 1200


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ((-5, -5, 20, 30), (0, 0, 15, 25)),
        ((50, 70, 100, 100), (50, 70, 60, 80)),
        ((-10, -10, 500, 500), (0, 0, 60, 80)),
        ((59.5, 0, 1, 1), (59.5, 0, 60, 1)),
    ],
)
def test_boxes_are_clipped_to_the_image(
    read: Callable[..., Any], box: tuple[float, ...], clipped: tuple[float, ...]
) -> None:
    index = read(with_box(*box))
    np.testing.assert_array_equal(index.images[1].boxes[0], clipped)
    assert index.dropped == ()


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((float("nan"), 0, 5, 5), "is not finite"),
        ((0, 0, float("inf"), 5), "is not finite"),
        ((0, 0, 10**400, 5), "is not finite"),
        ((10, 10, -5, 5), "has no area"),
        ((10, 10, 5, -5), "has no area"),
        ((10, 10, 0, 5), "has no area"),
        ((10, 10, 5, 0.0), "has no area"),
        ((60, 0, 5, 5), "is outside of the image of 60x80"),
        ((-9, 0, 9, 9), "is outside of the image of 60x80"),
        ((0, 200, 5, 5), "is outside of the image of 60x80"),
        ((1, 2, 3), "is not four numbers"),
        ((1, 2, 3, None), "is not four numbers"),
        ((1, 2, 3, "4"), "is not four numbers"),
        ((), "is not four numbers"),
    ],
)
def test_bad_boxes_are_dropped_counted_and_listed(
    read: Callable[..., Any], box: tuple[object, ...], reason: str
) -> None:
    index = read(with_box(*box))
    (dropped,) = index.dropped
    assert (dropped.file_name, dropped.annotation_id) == ("a.jpg", 1)
    assert dropped.reason.startswith(reason)
    assert str(dropped).startswith(f"a.jpg: annotation 1: box {list(dropped.box)} {reason}")
    np.testing.assert_array_equal(index.images[1].annotation_ids, [9])
    np.testing.assert_array_equal(index.images[1].labels, [0])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{'images': []}", "not JSON"),
        ("", "not JSON"),
        (json.dumps(SOUND)[:-20], "not JSON"),
        (b"\xff\xd8\xff\xe0 a picture", "not JSON"),
        ("[" * 200_000, "not JSON"),
        ("[1, 2]", "holds a list"),
        ("null", "holds a NoneType"),
    ],
)
def test_what_is_not_coco_json_is_refused(read: Callable[..., Any], text: str | bytes, what: str) -> None:
    with pytest.raises(AnnotationError, match=rf"instances\.json: {what}"):
        read(text)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_lacking_list_is_refused(key: str) -> None:
    with pytest.raises(AnnotationError, match=rf"x\.json: key '{key}' is lacking"):
        index_coco(changed(lambda d: d.pop(key)), source="x.json")
    with pytest.raises(AnnotationError, match=rf"x\.json: key '{key}' is not a list of objects"):
        index_coco(changed(lambda d: d.update({key: [1]})), source="x.json")


@pytest.mark.parametrize(
    ("table", "key"),
    [("images", k) for k in ("id", "file_name", "height", "width")]
    + [("annotations", k) for k in ("id", "image_id", "category_id", "bbox")]
    + [("categories", k) for k in ("id", "name")],
)
def test_a_lacking_key_is_named_with_its_place(table: str, key: str) -> None:
    with pytest.raises(AnnotationError, match=rf"x\.json: {table}\[1\].*: key '{key}' is lacking"):
        index_coco(changed(lambda d: d[table][1].pop(key)), source="x.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["images"][1].update(id=7), r"images\[1\]: id 7 is there twice"),
        (lambda d: d["annotations"][2].update(id=1), r"annotations\[2\]: id 1 is there twice"),
        (lambda d: d["categories"][2].update(id=18), r"categories\[2\]: id 18 is there twice"),
        (lambda d: d["annotations"][0].update(image_id=8), r"annotations\[0\]: image_id 8 is not among the images"),
        (
            lambda d: d["annotations"][0].update(category_id=5),
            r"annotations\[0\]: category_id 5 is not declared; .* 18, 44, 90",
        ),
        (lambda d: d["images"][0].update(height=0), r"images\[0\] \(b\.jpg\): size 100x0"),
        (lambda d: d["images"][0].update(width=None), r"images\[0\] \(b\.jpg\): width is None; .* integer"),
        (lambda d: d["images"][0].update(width=1.5), r"width is 1\.5; .* integer"),
        (lambda d: d["images"][0].update(id="7"), r"images\[0\]: id is '7'; .* integer"),
        (lambda d: d["images"][0].update(id=2**70), r"images\[0\]: id is \d+; .* integer"),
        (lambda d: d["images"][0].update(id=True), r"images\[0\]: id is True; .* integer"),
        (lambda d: d["images"][0].update(file_name=""), r"images\[0\]: file_name is ''; .* text"),
        (lambda d: d["images"][0].update(file_name="../../etc/x"), r"'\.\./\.\./etc/x' leads out"),
        (lambda d: d["images"][0].update(file_name="/etc/x"), r"'/etc/x' leads out"),
        (lambda d: d["categories"].clear(), "declares no categories"),
    ],
)
def test_a_wrong_value_is_refused(change: Callable[[Json], object], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        index_coco(changed(change), source="x.json")


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none\.json"):
        read_coco(tmp_path / "none.json")


def test_labels_follow_the_models_classes(read: Callable[..., Any]) -> None:
    index = read(SOUND, classes=coco_91_classes())
    np.testing.assert_array_equal(index.images[1].labels, [90, 18])
    assert [row["category_id"] for row in index.ground_truth()["annotations"]] == [18, 90, 18]


def test_a_category_that_the_model_does_not_know_is_refused(read: Callable[..., Any]) -> None:
    known = Classes(names=("dog", "cat"), category_ids=(18, 17))
    with pytest.raises(
        AnnotationError, match=r"annotations\[0\]: category_id 90 is not among the model's classes 18, 17"
    ):
        read(SOUND, classes=known)


@pytest.mark.parametrize(
    ("name", "images", "boxes", "crowds"),
    [
        ("coco_tiny/annotations/instances_val2017.json", 80, 815, 11),
        ("coco128/annotations/instances_train2017.json", 128, 939, 10),
        ("coco_eval/ground_truth.json", 100, 839, 9),
    ],
)
def test_real_annotations(shared: Path, name: str, images: int, boxes: int, crowds: int) -> None:
    path = shared / "data" / name
    index = read_coco(path)
    raw = {a["id"]: a for a in json.loads(path.read_text())["annotations"]}
    assert len(index) == images
    assert sum(len(image.boxes) for image in index.images) == boxes
    assert sum(int(image.crowd.sum()) for image in index.images) == crowds
    assert index.classes.category_ids[0] == 1
    assert index.classes.category_ids[-1] == 90
    for image in index.images:
        for annotation_id, label, box in zip(image.annotation_ids, image.labels, image.boxes, strict=True):
            x, y, w, h = raw[annotation_id]["bbox"]
            assert index.classes.category_ids[label] == raw[annotation_id]["category_id"]
            np.testing.assert_allclose(box, (x, y, x + w, y + h), atol=0.02)
