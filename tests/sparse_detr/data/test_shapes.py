"""The generated data set: the same for a seed, exact boxes, nothing hidden, and not trivial."""

from __future__ import annotations

import hashlib
import io
import json
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_detr.data.coco import read_coco
from sparse_detr.data.coco_index import verify_images
from sparse_detr.data.decode import decode_image
from sparse_detr.data.shapes import ShapeObject, ShapesConfig, compose, generate_shapes, shapes_coco, write_shapes
from sparse_detr.data.shapes_drawing import SUPERSAMPLING
from sparse_detr.errors import ConfigError
from sparse_detr.storage.location import locate


def digests(config: ShapesConfig) -> list[str]:
    return [hashlib.sha256(data + repr(objects).encode()).hexdigest() for _, data, objects in generate_shapes(config)]


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert digests(ShapesConfig(images=5, seed=3)) == digests(ShapesConfig(images=5, seed=3))


def test_pictures_and_seeds_differ_and_do_not_depend_on_the_count() -> None:
    many = digests(ShapesConfig(images=6, seed=3))
    assert len(set(many)) == 6
    assert digests(ShapesConfig(images=2, seed=3)) == many[:2]
    assert not set(many) & set(digests(ShapesConfig(images=6, seed=4)))


def test_boxes_are_tight_around_the_rendered_masks() -> None:
    """A box from each object's own visible pixels, found by scanning the owner map, not by the code under test."""
    config = ShapesConfig(seed=1)
    seen = 0
    for index in range(60):
        owner, stamps, objects = compose(config, np.random.default_rng((1, index)))
        assert len(stamps) == len(objects)
        for number, item in enumerate(objects):
            rows, columns = np.nonzero(np.isin(owner, (2 * number + 1, 2 * number + 2)))
            extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(item.box, np.array(extent) / SUPERSAMPLING)
            assert item.area == len(rows) / SUPERSAMPLING**2
            seen += 1
    assert seen > 100


def test_an_object_is_where_the_picture_differs_from_the_background() -> None:
    """End to end on JPEG bytes: on plain ground one object's box is the extent of what is not ground."""
    config = ShapesConfig(
        images=150, seed=11, max_objects=1, clutter=0, noise=0.0, min_side=0.25, max_side=0.5, jpeg_quality=95
    )
    checked = 0
    for name, data, (item,) in generate_shapes(config):
        pixels = decode_image(data, name=name).astype(float)
        x0, y0, x1, y1 = item.box
        around = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        if min(x0, y0) < 3 or max(x1, y1) > 125 or around.std(axis=0).max() > 9:
            continue
        differs = np.linalg.norm(pixels - np.median(around, axis=0), axis=-1) > 40
        rows, columns = np.flatnonzero(differs.sum(1) >= 1), np.flatnonzero(differs.sum(0) >= 1)
        found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.array(found) - item.box).max() <= 2.5, name
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("least", [0.3, 0.5, 0.9])
def test_every_object_stays_visible(least: float) -> None:
    config = ShapesConfig(min_visible=least, min_objects=4, max_objects=8)
    for index in range(25):
        _, stamps, objects = compose(config, np.random.default_rng((2, index)))
        for placed, item in zip(stamps, objects, strict=True):
            assert item.area * SUPERSAMPLING**2 >= least * placed.full_area


def test_the_set_is_not_trivial() -> None:
    config = ShapesConfig()
    rows = [compose(config, np.random.default_rng((5, index)))[2] for index in range(150)]
    counts = [len(objects) for objects in rows]
    boxes = np.array([item.box for objects in rows for item in objects])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / config.size
    labels = np.bincount([item.label for objects in rows for item in objects])
    assert {min(counts), max(counts)} == {1, 5}
    assert np.percentile(sides, 5) < 0.15
    assert np.percentile(sides, 95) > 0.45
    assert sides.max() <= 0.61
    assert labels.min() > 0.15 * labels.sum()
    assert (boxes >= 0).all()
    assert (boxes <= config.size).all()
    assert sum(overlaps(objects) for objects in rows) > 30


def overlaps(objects: tuple[ShapeObject, ...]) -> bool:
    pairs = combinations([item.box for item in objects], 2)
    return any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs)


def test_colour_does_not_tell_the_class() -> None:
    """Mean colours of the classes in the middle of objects are alike."""
    config = ShapesConfig(images=100, seed=6, max_objects=3)
    colours: dict[int, list[np.ndarray]] = {}
    for name, data, objects in generate_shapes(config):
        pixels = decode_image(data, name=name)
        for item in objects:
            x, y = (item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2
            colours.setdefault(item.label, []).append(pixels[int(y), int(x)])
    means = np.array([np.mean(values, axis=0) for values in colours.values()])
    assert len(means) == 4
    assert np.ptp(means, axis=0).max() < 60


def test_size_and_classes_follow_the_config() -> None:
    config = ShapesConfig(images=3, size=96, classes=("ring", "star"), min_objects=2, max_objects=2)
    rows = []
    for name, data, objects in generate_shapes(config):
        assert Image.open(io.BytesIO(data)).size == (96, 96)
        assert {item.label for item in objects} <= {0, 1}
        rows.append((name, objects))
    assert [c["name"] for c in shapes_coco(config, rows)["categories"]] == ["ring", "star"]


def test_writing_gives_a_data_set_that_reads_back(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    config = ShapesConfig(seed=9)
    uris = write_shapes(locate(tmp_path), config, {"train": 40, "val": 3}, lambda *p: progress.append(p))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train", "train.json", "val", "val.json"]
    assert progress == [(done, 43) for done in range(1, 44)]
    for split, images in (("train", 40), ("val", 3)):
        index = read_coco(uris[split].annotations)
        assert len(index) == images
        assert index.dropped == ()
        assert index.classes.names == config.classes
        verify_images(index, uris[split].images)
        assert all(len(image.boxes) >= 1 for image in index.images)


def test_writing_is_seeded_and_splits_share_no_picture(tmp_path: Path) -> None:
    found: dict[str, bytes] = {}
    for run in ("a", "b"):
        write_shapes(locate(tmp_path / run), ShapesConfig(seed=2), {"train": 4, "val": 4})
        files = {str(p.relative_to(tmp_path / run)): p.read_bytes() for p in (tmp_path / run).rglob("*") if p.is_file()}
        assert len(files) == 10
        assert not found or files == found
        found = files
    assert len({data for name, data in found.items() if name.endswith(".jpg")}) == 8
    rows = json.loads(found["train.json"])["annotations"]
    assert all(a["id"] + 1 == b["id"] for a, b in pairwise(rows))


def test_a_broken_off_writing_leaves_no_annotations_of_an_earlier_one(tmp_path: Path) -> None:
    write_shapes(locate(tmp_path), ShapesConfig(), {"train": 2})

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shapes(locate(tmp_path), ShapesConfig(seed=1), {"train": 2}, stop)
    assert not (tmp_path / "train.json").exists()


@pytest.mark.parametrize("splits", [{}, {"train": 3, "val": 0}])
def test_splits_without_pictures_are_refused(tmp_path: Path, splits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"splits: .* at least one picture"):
        write_shapes(locate(tmp_path), ShapesConfig(), splits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", -1),
        ("seed", -1),
        ("size", 16),
        ("classes", ()),
        ("classes", ("circle", "hexagon")),
        ("classes", ("circle", "circle")),
        ("min_objects", 0),
        ("max_objects", 0),
        ("max_objects", 101),
        ("min_side", 0.01),
        ("max_side", 0.05),
        ("max_side", 1.5),
        ("min_visible", 0.0),
        ("clutter", -1),
        ("noise", -1.0),
        ("jpeg_quality", 0),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"shapes\.{field}: .*must be"):
        ShapesConfig(**{field: value})  # type: ignore[arg-type]
