"""Tiles cover an image, and boxes that several of them saw become one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipelines.detect.config import PredictorConfig
from pipelines.detect.predictor import Predictor
from pipelines.detect.tiles import Tile, TileGrid, View, merge_views
from sparse_detr.errors import ConfigError
from sparse_detr.records import Detections, ImageBatch, ImageSize, Output


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


SIZE = (100, 180)
LEFT, RIGHT = (0, 0, 100, 100), (80, 0, 100, 100)
"""Two tiles of an image of SIZE; their inner borders are at x = 100 and x = 80."""

Row = tuple[float, int, tuple[float, float, float, float]]


def _view(*found: Row, tile: Tile | None = None) -> View:
    detections = Detections(
        scores=torch.tensor([score for score, _, _ in found]),
        labels=torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        boxes=torch.tensor([box for _, _, box in found]).reshape(-1, 4),
    )
    return View(detections=detections, tile=tile)


def _merged(*views: View, limit: int = 100) -> list[Row]:
    found = merge_views(views, SIZE, limit)
    rows = zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True)
    return [(round(score, 3), label, tuple(box)) for score, label, box in rows]


WHOLE: Row = (0.6, 1, (84.0, 10.0, 124.0, 30.0))
"""Seen whole by the right tile; the left one sees 16 of its 40 pixels."""
PART: Row = (0.9, 1, (84.0, 10.0, 100.0, 30.0))


@pytest.mark.parametrize("order", [1, -1])
def test_of_an_object_on_a_border_the_whole_stays_whatever_the_scores(order: int) -> None:
    views = [_view(), _view(PART, tile=LEFT), _view(WHOLE, tile=RIGHT)]
    assert _merged(*views[::order]) == [WHOLE]


def test_a_part_that_no_other_view_completes_stays() -> None:
    assert _merged(_view(), _view(PART, tile=LEFT), _view(tile=RIGHT)) == [PART]


def test_parts_of_an_object_that_only_the_whole_image_shows_give_way_to_it() -> None:
    large: Row = (0.4, 1, (20.0, 5.0, 170.0, 95.0))
    left: Row = (0.9, 1, (20.0, 5.0, 99.0, 95.0))
    right: Row = (0.8, 1, (81.0, 5.0, 170.0, 95.0))
    assert _merged(_view(large), _view(left, tile=LEFT), _view(right, tile=RIGHT)) == [large]


def test_a_part_that_was_taken_for_another_class_gives_way_to_the_whole() -> None:
    part: Row = (0.9, 2, (85.0, 11.0, 99.0, 30.0))
    assert _merged(_view(), _view(part, tile=LEFT), _view(WHOLE, tile=RIGHT)) == [WHOLE]


def test_something_of_another_class_on_a_border_is_no_part_of_what_is_behind_it() -> None:
    behind: Row = (0.9, 1, (20.0, 5.0, 170.0, 95.0))
    before: Row = (0.8, 2, (70.0, 40.0, 100.0, 60.0))
    assert _merged(_view(behind), _view(before, tile=LEFT), _view(tile=RIGHT)) == [behind, before]


def test_the_border_of_the_image_cuts_nothing() -> None:
    """What ends there ends for every view: its box is as good as any other."""
    seen: Row = (0.9, 1, (0.0, 0.0, 30.0, 20.0))
    coarse: Row = (0.5, 1, (2.0, 0.0, 36.0, 22.0))
    assert _merged(_view(coarse), _view(seen, tile=LEFT), _view(tile=RIGHT)) == [seen]


def test_an_object_on_another_of_its_class_stays() -> None:
    """Both are whole, in different views: one within the other is not the same one."""
    large: Row = (0.9, 1, (10.0, 10.0, 170.0, 90.0))
    small: Row = (0.8, 1, (30.0, 30.0, 50.0, 50.0))
    assert _merged(_view(large), _view(small, tile=LEFT), _view(tile=RIGHT)) == [large, small]


def test_an_object_that_two_tiles_show_whole_is_found_once() -> None:
    one: Row = (0.8, 1, (84.0, 10.0, 96.0, 30.0))
    other: Row = (0.7, 1, (85.0, 11.0, 97.0, 31.0))
    assert _merged(_view(), _view(one, tile=LEFT), _view(other, tile=RIGHT)) == [one]


def test_other_classes_and_neighbours_stay() -> None:
    box, near = (0.0, 0.0, 10.0, 10.0), (6.0, 0.0, 16.0, 10.0)
    found = _merged(_view((0.9, 1, box)), _view((0.8, 2, box), (0.7, 1, near), tile=LEFT))
    assert [(score, label) for score, label, _ in found] == [(0.9, 1), (0.8, 2), (0.7, 1)]


def test_boxes_of_one_view_do_not_suppress_each_other() -> None:
    """The model has no suppression within an image, and tiles add none."""
    box, inside = (0.0, 0.0, 10.0, 10.0), (1.0, 1.0, 9.0, 9.0)
    assert len(_merged(_view((0.9, 1, box), (0.8, 1, inside)), _view(tile=LEFT))) == 2


def test_the_best_come_first_and_no_more_than_the_limit() -> None:
    views = [_view(*((0.1 * k, 0, (20.0 * k, 0.0, 20.0 * k + 10, 10.0)) for k in range(1, 5))), _view(tile=LEFT)]
    assert [score for score, _, _ in _merged(*views, limit=3)] == [0.4, 0.3, 0.2]
    assert [score for score, _, _ in _merged(_view(PART, tile=LEFT), views[0], limit=1)] == [0.9]
    assert _merged(_view(), _view(tile=LEFT)) == []


@pytest.mark.parametrize(("side", "overlap"), [(31, 0.2), (64, 1.0), (64, -0.1), (64, float("nan"))])
def test_what_is_no_grid_is_refused(side: int, overlap: float) -> None:
    with pytest.raises(ConfigError, match=r"tile|overlap"):
        TileGrid(side=side, overlap=overlap)


class Finder(torch.nn.Module):
    """Finds white rectangles of at least 4 x 4 pixels by connected components, the smaller the surer."""

    image_size = ImageSize(short_side=100, max_side=150)

    def forward(self, batch: ImageBatch, keep_ratio: float | None = None) -> Output:
        logits, boxes = torch.full((len(batch), 20, 1), -20.0), torch.full((len(batch), 20, 4), 0.5)
        height, width = batch.pixels.shape[2:]
        for image, pixels in enumerate(batch.pixels):
            places = ndimage.find_objects(ndimage.label(pixels.mean(0) > 0)[0])
            spans = [(x.start, y.start, x.stop, y.stop) for y, x in places]
            spans = [(x0, y0, x1, y1) for x0, y0, x1, y1 in spans if min(x1 - x0, y1 - y0) >= 4]
            for query, (x0, y0, x1, y1) in enumerate(spans):
                boxes[image, query] = torch.tensor(
                    [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
                )
                logits[image, query] = 3 - (x1 - x0) * (y1 - y0) / (height * width)
        padding = batch.padding.flatten(1)
        return Output(
            logits=logits, boxes=boxes, kept_tokens=None, query_tokens=None, shapes=((height, width),),
            token_padding=padding,
        )  # fmt: skip


def test_what_the_whole_image_misses_tiles_find_once() -> None:
    """Tiles of 300 over 780 x 540 pixels, with inner borders at x = 240, 300, 480, 540 and y = 240, 300."""
    small = [
        (90, 90, 105, 108), (228, 60, 246, 75), (294, 90, 309, 105), (471, 36, 486, 51), (534, 72, 549, 87),
        (60, 231, 75, 249), (120, 291, 138, 306), (234, 234, 249, 249), (292, 291, 309, 309), (762, 522, 780, 540),
    ]  # fmt: skip
    large = [(231, 120, 309, 180), (420, 180, 750, 510)]  # whole in no tile
    image = np.zeros((540, 780, 3), np.uint8)
    for x0, y0, x1, y1 in small + large:
        image[y0:y1, x0:x1] = 255

    def found(tiles: TileGrid | None) -> list[list[float]]:
        predictor = Predictor(Finder(), PredictorConfig(), score_threshold=0.5, tiles=tiles)  # type: ignore[arg-type]
        (result,) = predictor([image])
        assert result.detections is not None
        assert result.tile is None
        return sorted(result.detections.boxes.tolist())

    np.testing.assert_allclose(found(None), large, atol=6)
    np.testing.assert_allclose(found(TileGrid(side=300, overlap=0.2)), sorted(small + large), atol=6)
