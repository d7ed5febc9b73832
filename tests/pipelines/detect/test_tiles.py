"""Tiles cover an image, and boxes that several of them saw become one."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.detect.tiles import TileGrid, merge_views
from sparse_detr.errors import ConfigError
from sparse_detr.records import Detections


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), side=st.integers(32, 1500), overlap=st.floats(0, 0.9))
@settings(max_examples=300, deadline=None)
def test_tiles_cover_the_image_with_the_overlap_and_stay_inside(
    height: int, width: int, side: int, overlap: float
) -> None:
    tiles = list(TileGrid(side=side, overlap=overlap).cut((height, width)))
    if height <= side and width <= side:
        assert tiles == []
        return
    for axis, length in ((0, width), (1, height)):
        starts = sorted({tile[axis] for tile in tiles})
        extent = tiles[0][axis + 2]
        assert starts[0] == 0
        assert starts[-1] + extent == length
        for one, two in itertools.pairwise(starts):
            assert one + extent - two >= int(side * overlap) - 1
    assert {tile[2:] for tile in tiles} == {(min(side, width), min(side, height))}


def _view(*found: tuple[float, int, tuple[float, float, float, float]]) -> Detections:
    return Detections(
        scores=torch.tensor([score for score, _, _ in found]),
        labels=torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        boxes=torch.tensor([box for _, _, box in found]).reshape(-1, 4),
    )


def _merged(*views: Detections, limit: int = 100) -> list[tuple[float, int, list[float]]]:
    found = merge_views(views, limit)
    rows = zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True)
    return [(round(score, 3), label, box) for score, label, box in rows]


def test_an_object_on_a_border_is_found_once() -> None:
    """Cut in half by a border, it has an IoU of 0.5 with the whole; by a smaller piece, less."""
    whole, half, piece = (0.0, 0.0, 20.0, 10.0), (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 4.0, 10.0)
    found = _merged(_view((0.8, 1, whole)), _view((0.9, 1, half)), _view((0.7, 1, piece)))
    assert found == [(0.9, 1, list(half))]
    found = _merged(_view((0.95, 1, whole)), _view((0.9, 1, half)), _view((0.7, 1, piece)))
    assert found == [(0.95, 1, list(whole))]


def test_other_classes_and_neighbours_stay() -> None:
    box, near = (0.0, 0.0, 10.0, 10.0), (6.0, 0.0, 16.0, 10.0)
    found = _merged(_view((0.9, 1, box)), _view((0.8, 2, box), (0.7, 1, near)))
    assert [(score, label) for score, label, _ in found] == [(0.9, 1), (0.8, 2), (0.7, 1)]


def test_boxes_of_one_view_do_not_suppress_each_other() -> None:
    """The model has no suppression within an image, and tiles add none."""
    box, inside = (0.0, 0.0, 10.0, 10.0), (1.0, 1.0, 9.0, 9.0)
    assert len(_merged(_view((0.9, 1, box), (0.8, 1, inside)), _view())) == 2


def test_the_best_come_first_and_no_more_than_the_limit() -> None:
    views = [_view(*((0.1 * k, 0, (20.0 * k, 0.0, 20.0 * k + 10, 10.0)) for k in range(1, 5))), _view()]
    assert [score for score, _, _ in _merged(*views, limit=3)] == [0.4, 0.3, 0.2]
    assert _merged(_view(), _view()) == []


@pytest.mark.parametrize(("side", "overlap"), [(31, 0.2), (64, 1.0), (64, -0.1), (64, float("nan"))])
def test_what_is_no_grid_is_refused(side: int, overlap: float) -> None:
    with pytest.raises(ConfigError, match=r"tile|overlap"):
        TileGrid(side=side, overlap=overlap)
