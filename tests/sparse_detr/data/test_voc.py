"""Pascal VOC: the real blood cells, and files that lack something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sparse_detr.data.coco import index_coco
from sparse_detr.data.coco_index import verify_images
from sparse_detr.data.voc import import_voc, voc_images
from sparse_detr.errors import AnnotationError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"""


def thing(*corners: object, name: str = "cat", difficult: int = 0) -> str:
    return OBJECT.format(*corners, name=name, difficult=difficult)


def document(*objects: str, size: str = "<size><width>40</width><height>30</height></size>") -> str:
    return f"<annotation><filename>one.jpg</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Callable[[str], Path]:
    def build(xml: str) -> Path:
        for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "ImageSets/Main/train.txt").write_text("one\n\n")
        (tmp_path / "Annotations/one.xml").write_text(xml)
        Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages/one.jpg")
        return tmp_path

    return build


@pytest.mark.parametrize(
    ("split", "images", "boxes", "dropped"),
    [
        ("train", 205, 2804, ["BloodImage_00343.jpg"]),
        ("val", 87, 1137, ["BloodImage_00338.jpg"]),
        ("test", 72, 945, []),
    ],
)
def test_blood_cells(shared: Path, split: str, images: int, boxes: int, dropped: list[str]) -> None:
    root = shared / "data" / "bccd"
    data, left_out = import_voc(root, split)
    assert (len(data["images"]), len(data["annotations"])) == (images, boxes)
    assert [box.file_name for box in left_out] == dropped
    assert all(box.reason.startswith("has no area") for box in left_out)
    assert [c["name"] for c in data["categories"]] == ["Platelets", "RBC", "WBC"]
    index = index_coco(data, source=split)
    assert index.dropped == ()
    verify_images(index, voc_images(root))


def test_the_box_without_area_is_listed_as_the_file_has_it(shared: Path) -> None:
    _, (box,) = import_voc(shared / "data" / "bccd", "val")
    assert box.box == (504, 337, 504, 337)
    assert str(box) == (
        "BloodImage_00338.jpg: annotation 887: box [504.0, 337.0, 504.0, 337.0] "
        "has no area: xmax and ymax must be above xmin and ymin"
    )


def test_pixels_count_from_one_and_include_the_last(root: Callable[[str], Path]) -> None:
    data, _ = import_voc(root(document(thing(1, 1, 40, 30), thing(11, 6, 20, 10, name="ant"))), "train")
    assert [a["bbox"] for a in data["annotations"]] == [[0, 0, 40, 30], [10, 5, 10, 5]]
    assert [a["area"] for a in data["annotations"]] == [1200, 50]
    assert data["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    assert [a["category_id"] for a in data["annotations"]] == [2, 1]
    assert data["images"] == [{"id": 1, "file_name": "one.jpg", "height": 30, "width": 40}]


def test_difficult_objects_are_ignored_in_evaluation(root: Callable[[str], Path]) -> None:
    data, _ = import_voc(root(document(thing(1, 1, 9, 9), thing(5, 5, 9, 9, difficult=1))), "train")
    assert [a["iscrowd"] for a in data["annotations"]] == [0, 1]


@pytest.mark.parametrize("corners", [(9, 1, 5, 5), (1, 9, 5, 5), (5, 5, 5, 9), ("nan", 1, 5, 5), (1, 1, "inf", 5)])
def test_boxes_without_area_or_not_finite_are_dropped(root: Callable[[str], Path], corners: tuple[object, ...]) -> None:
    data, dropped = import_voc(root(document(thing(*corners), thing(1, 1, 5, 5))), "train")
    assert len(data["annotations"]) == 1
    assert len(dropped) == 1


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size/>"])
def test_a_size_that_is_absent_comes_from_the_image(root: Callable[[str], Path], size: str) -> None:
    data, _ = import_voc(root(document(size=size)), "train")
    assert (data["images"][0]["width"], data["images"][0]["height"]) == (40, 30)
    assert data["annotations"] == []


def test_a_wrong_file_name_inside_does_not_matter(root: Callable[[str], Path]) -> None:
    data, _ = import_voc(root(document().replace("one.jpg", "/home/pi/other.png")), "train")
    assert data["images"][0]["file_name"] == "one.jpg"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><object>", "not XML"),
        ("", "not XML"),
        (document(thing(1, 1, 5, 5, name="")), "an object has no name"),
        (document("<object><name>cat</name></object>"), "an object has no bndbox/xmin"),
        (document(thing(1, 1, 5, 5).replace("<ymax>5</ymax>", "")), "an object has no bndbox/ymax"),
        (document(thing(1, "two", 5, 5)), r"bndbox is \['1', 'two', '5', '5'\]; .* numbers"),
        (document(size="<size><width>wide</width><height>3</height></size>"), r"size is \['wide', '3'\]"),
    ],
)
def test_a_broken_annotation_names_the_file(root: Callable[[str], Path], xml: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=rf"Annotations/one\.xml: {message}"):
        import_voc(root(xml), "train")


def test_an_unknown_split_lists_the_known_ones(root: Callable[[str], Path]) -> None:
    with pytest.raises(AnnotationError, match=r"trial\.txt: no such split; there are: train"):
        import_voc(root(document()), "trial")


def test_an_empty_split_and_a_name_twice_are_refused(root: Callable[[str], Path]) -> None:
    folder = root(document())
    (folder / "ImageSets/Main/none.txt").write_text("\n")
    (folder / "ImageSets/Main/twice.txt").write_text("one\none\n")
    with pytest.raises(AnnotationError, match=r"none\.txt: names no image"):
        import_voc(folder, "none")
    with pytest.raises(AnnotationError, match=r"twice\.txt: 'one' is there twice"):
        import_voc(folder, "twice")


def test_a_missing_annotation_is_named(root: Callable[[str], Path]) -> None:
    folder = root(document())
    (folder / "ImageSets/Main/train.txt").write_text("one\ntwo\n")
    with pytest.raises(AnnotationError, match=r"two\.xml: no such file"):
        import_voc(folder, "train")


def test_a_missing_image_is_named(root: Callable[[str], Path]) -> None:
    folder = root(document())
    (folder / "JPEGImages/one.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"one\.xml: its image is not in .*JPEGImages; looked for one\.jpg"):
        import_voc(folder, "train")


def test_without_a_size_a_broken_image_is_named(root: Callable[[str], Path]) -> None:
    folder = root(document(size=""))
    (folder / "JPEGImages/one.jpg").write_bytes(b"text")
    with pytest.raises(AnnotationError, match=r"one\.xml: has no size, and .*one\.jpg is no image"):
        import_voc(folder, "train")
