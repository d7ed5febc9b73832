from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.detect.manifest import MANIFEST_SCHEMA, Manifest, build_manifest
from sparse_detr.errors import AnnotationError, ConfigError, StorageError


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_folder_lists_image_files_of_all_depths_sorted(tmp_path: Path) -> None:
    _touch(tmp_path, "b.jpg", "a/z.PNG", "a/notes.txt", "c.jpeg", "README", "a b/ü.webp")
    manifest = build_manifest(str(tmp_path))
    assert manifest.table.column("key").to_pylist() == ["a b/ü.webp", "a/z.PNG", "b.jpg", "c.jpeg"]
    assert manifest.table.column("index").to_pylist() == [0, 1, 2, 3]
    assert manifest.table.column("image_id").null_count == 4
    assert manifest.root == str(tmp_path)


def test_one_image_is_a_collection(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "b.jpg")
    manifest = build_manifest(str(tmp_path / "b.jpg"))
    assert (manifest.root, manifest.table.column("key").to_pylist()) == (str(tmp_path), ["b.jpg"])
    with pytest.raises(StorageError, match="not a folder"):
        build_manifest(str(tmp_path / "absent.jpg"))


def test_broken_files_are_listed(tmp_path: Path) -> None:
    _touch(tmp_path, "empty.jpg")
    assert len(build_manifest(str(tmp_path))) == 1


def test_annotations_name_images_and_ids_even_missing_ones_and_without_boxes(tmp_path: Path) -> None:
    _touch(tmp_path / "images", "b.jpg", "unlisted.jpg")
    images = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    (tmp_path / "list.json").write_text(json.dumps({"images": images}))
    manifest = build_manifest(str(tmp_path / "images"), str(tmp_path / "list.json"))
    assert manifest.table.select(["key", "image_id"]).to_pylist() == [
        {"key": "a.jpg", "image_id": 3},
        {"key": "b.jpg", "image_id": 7},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no list 'images'"),
        ('{"images": []}', "no list 'images'"),
        ('{"images": [{"id": 1}]}', r"images\[0\]: file_name is None"),
        ('{"images": [{"file_name": "a", "id": "1"}]}', "id '1'"),
        ('{"images": [{"file_name": "a", "id": 1}, {"file_name": "b", "id": 1}]}', "twice"),
    ],
)
def test_bad_annotations_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(AnnotationError, match=message):
        build_manifest(str(tmp_path), str(tmp_path / "list.json"))


def test_absent_folder_and_folder_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a folder"):
        build_manifest(str(tmp_path / "absent"))
    _touch(tmp_path, "readme.txt")
    with pytest.raises(StorageError, match="holds no image"):
        build_manifest(str(tmp_path))
    with pytest.raises(StorageError, match=r"absent\.json"):
        build_manifest(str(tmp_path), str(tmp_path / "absent.json"))


def test_blocks_cover_every_row_once_in_order() -> None:
    blocks = Manifest.of("/root", [f"{i:02d}.jpg" for i in range(10)]).blocks(4)
    assert [block.num_rows for block in blocks] == [4, 4, 2]
    assert [i for block in blocks for i in block.column("index").to_pylist()] == list(range(10))
    assert all(block.schema == MANIFEST_SCHEMA for block in blocks)


def test_a_list_keeps_its_order_and_columns_and_its_relative_paths_are_below_it(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("camera,uri\n3,b.jpg\n2,s3://b/a.jpg\n1,/x/c.jpg\n")
    manifest = build_manifest(str(tmp_path / "list.csv"))
    assert manifest.root == ""
    assert manifest.table.column("key").to_pylist() == [f"{tmp_path}/b.jpg", "s3://b/a.jpg", "/x/c.jpg"]
    assert manifest.table.column("camera").to_pylist() == [3, 2, 1]
    (tmp_path / "list.txt").write_text("\n b.jpg \n\nc.jpg\n")
    assert build_manifest(str(tmp_path / "list.txt")).table.column("key").to_pylist() == [
        f"{tmp_path}/b.jpg", f"{tmp_path}/c.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uri,error\na.jpg,x\n", r"error\); rename"),
        ("uri,index\na.jpg,x\n", r"index\); rename"),
        ("uri,a,a\na.jpg,x,y\n", "twice the same name"),
        ("url\na.jpg\n", "no column 'uri', but url"),
        ("uri,a\n,x\n", "without a path"),
        ("uri,a\n", "names no image"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises((ConfigError, StorageError), match=message):
        build_manifest(str(tmp_path / "list.csv"))


def test_a_loop_of_links_lists_each_file_once_and_odd_names_are_listed(tmp_path: Path) -> None:
    _touch(tmp_path, "a/b.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    Path(str(tmp_path).encode().decode(), "a").joinpath("c\udcff.jpg").write_bytes(b"")
    keys = build_manifest(str(tmp_path)).table.column("key").to_pylist()
    assert keys == ["a/b.jpg", "a/c\\xff.jpg"]
