"""Outlines, masks and compositing against geometry done another way."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_detr.data.shapes_drawing import SHAPE_NAMES, SUPERSAMPLING, clutter, finish, outline, paint, stamp, texture


@pytest.mark.parametrize("name", SHAPE_NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_the_longer_side_of_an_outline_is_one(name: str, seed: int) -> None:
    points = outline(name, np.random.default_rng(seed), 180.0)
    assert np.ptp(points, axis=0).max() == pytest.approx(1)
    assert np.ptp(points, axis=0).min() > 0.5


def shoelace(points: np.ndarray) -> float:
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


@pytest.mark.parametrize("name", [n for n in SHAPE_NAMES if n != "ring"])
@pytest.mark.parametrize("seed", range(8))
def test_a_stamp_has_the_area_and_the_extent_of_its_outline(name: str, seed: int) -> None:
    centre, side = (41.3, 37.8), 30.0
    placed = stamp(name, centre, side, 100, np.random.default_rng(seed))
    assert placed is not None
    points = outline(name, np.random.default_rng(seed), 180.0) * side
    drawn = placed.mask > 0
    # A small pixel belongs to a shape when its centre does; Pillow gives it those on the edge as well.
    assert drawn.sum() / SUPERSAMPLING**2 == pytest.approx(shoelace(points), rel=0.06)
    assert placed.full_area == drawn.sum()
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / SUPERSAMPLING
    found += (placed.left, placed.top, placed.left, placed.top)
    expected = np.concatenate((points.min(0) + centre, points.max(0) + centre))
    assert np.abs(found - expected).max() <= 1.5 / SUPERSAMPLING


def test_without_a_lean_a_triangle_stands_on_its_side_with_the_tip_up() -> None:
    points = outline("triangle", np.random.default_rng(3), 0.0)
    tip, *base = points[np.argsort(points[:, 1])]
    assert base[0][1] == pytest.approx(base[1][1], abs=1e-6)
    assert tip[0] == pytest.approx((base[0][0] + base[1][0]) / 2, abs=1e-6)


def test_an_object_is_plain_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    background = np.full((64, 64, 3), 120.0, np.float32)
    colours = []
    for plain in (0.0, 1.0):
        placed = stamp("square", (32.0, 32.0), 30.0, 64, np.random.default_rng(2), 0.0)
        assert placed is not None
        owner = np.zeros((64 * SUPERSAMPLING, 64 * SUPERSAMPLING), np.uint8)
        owner[placed.region] = placed.mask
        painted = [paint(background, owner, [placed], rng, plain)[28:36, 28:36].reshape(-1, 3) for _ in range(12)]
        colours.append(sum(float(np.ptp(patch, axis=0).max()) > 1e-3 for patch in painted))
    assert colours[0] > 6
    assert colours[1] == 0


def test_a_ring_has_a_hole_and_a_circle_has_none() -> None:
    for seed in range(6):
        for name, hole in (("ring", True), ("circle", False)):
            placed = stamp(name, (50.0, 50.0), 40.0, 100, np.random.default_rng(seed))
            assert placed is not None
            row, column = (50 - placed.top) * SUPERSAMPLING, (50 - placed.left) * SUPERSAMPLING
            assert (placed.mask[row, column] == 0) is np.bool_(hole)


def test_a_stamp_is_cut_at_the_border() -> None:
    whole = stamp("circle", (50.0, 50.0), 40.0, 100, np.random.default_rng(1))
    cut = stamp("circle", (0.0, 50.0), 40.0, 100, np.random.default_rng(1))
    assert whole is not None
    assert cut is not None
    assert cut.left == 0
    assert cut.full_area == pytest.approx(whole.full_area, rel=0.01)
    assert np.count_nonzero(cut.mask) == pytest.approx(whole.full_area / 2, rel=0.03)
    assert stamp("circle", (-90.0, 50.0), 40.0, 100, np.random.default_rng(1)) is None


def test_paint_covers_what_is_owned_and_leaves_the_rest() -> None:
    rng = np.random.default_rng(0)
    background = np.full((64, 64, 3), 100, np.float32)
    placed = stamp("square", (32.0, 32.0), 30.0, 64, rng)
    assert placed is not None
    owner = np.zeros((64 * SUPERSAMPLING,) * 2, np.uint8)
    owner[placed.region] = placed.mask
    painted = paint(background, owner, [placed], rng)
    share = (owner > 0).reshape(64, SUPERSAMPLING, 64, SUPERSAMPLING).mean(axis=(1, 3))
    np.testing.assert_allclose(painted[share == 0], 100, atol=0.01)
    assert np.linalg.norm(painted[share == 1] - 100, axis=-1).mean() > 40


def test_textures_stay_away_from_the_colour_behind() -> None:
    behind = np.array([120, 130, 140], np.float32)
    distances = [
        np.linalg.norm(texture(np.random.default_rng(s), 20, 30, away_from=behind) - behind, axis=-1).mean()
        for s in range(60)
    ]
    assert min(distances) > 30


def test_textures_are_of_many_kinds() -> None:
    patches = [texture(np.random.default_rng(s), 24, 24) for s in range(40)]
    assert all(p.shape == (24, 24, 3) and p.dtype == np.float32 for p in patches)
    plain = sum(float(np.ptp(p, axis=(0, 1)).max()) == 0 for p in patches)
    assert 0 < plain < 20


def test_clutter_and_finish_change_the_picture() -> None:
    rng = np.random.default_rng(3)
    grey = np.full((64, 64, 3), 128, np.float32)
    untouched = np.asarray(clutter(grey, 0, rng))
    assert (untouched == 128).all()
    touched = np.asarray(clutter(grey, 8, rng)) != 128
    assert 0.001 < touched.any(-1).mean() < 0.4
    assert np.asarray(finish(grey, 10.0, rng)).std() > 1
