from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_detr.records import Detections, Targets
from sparse_detr.visualize import class_colour, draw_detections

GREY = 77


def blank(height=100, width=200):
    return np.full((height, width, 3), GREY, np.uint8)


def detections_of(*rows):
    scores, labels, boxes = zip(*rows, strict=True)
    return Detections(
        scores=torch.tensor(scores), labels=torch.tensor(labels), boxes=torch.tensor(boxes, dtype=torch.float32)
    )


def pixels_of(picture, colour):
    return np.argwhere((picture == np.array(colour)).all(-1))


def test_box_lies_where_the_detection_is_and_scales_with_the_image():
    found = detections_of((0.9, 1, (50, 40, 150, 90)))
    for short_side, factor in ((100, 1), (300, 3)):
        picture = draw_detections(blank(), found, ["a", "b"], short_side=short_side)
        assert picture.shape == (100 * factor, 200 * factor, 3)
        ys, xs = pixels_of(picture, class_colour(1)).T
        # The tag above the box is of the class's colour too, so the top edge is checked at the right corner.
        assert abs(xs.min() - 50 * factor) <= 1
        assert abs(xs.max() - 150 * factor) <= 1
        assert abs(ys.max() - 90 * factor) <= 1
        assert (picture[60 * factor, 100 * factor] == GREY).all()


def test_threshold_leaves_out():
    found = detections_of((0.9, 0, (10, 40, 60, 90)), (0.3, 1, (100, 40, 150, 90)))
    picture = draw_detections(blank(), found, ["a", "b"], short_side=100)
    assert len(pixels_of(picture, class_colour(0)))
    assert not len(pixels_of(picture, class_colour(1)))
    assert len(pixels_of(draw_detections(blank(), found, ["a", "b"], threshold=0.2), class_colour(1)))


def test_truth_is_dashed_white():
    truth = Targets(labels=torch.tensor([0]), boxes=torch.tensor([[0.5, 0.5, 0.5, 0.6]]))
    none = Detections(scores=torch.empty(0), labels=torch.empty(0, dtype=torch.int64), boxes=torch.empty(0, 4))
    picture = draw_detections(blank(), none, ["a"], truth=truth, short_side=100)
    top = picture[20, 50:150]
    white = (top == 255).all(-1)
    assert 20 < white.sum() < 80  # dashes and gaps
    assert (picture[50, 100] == GREY).all()


def test_tags_do_not_cover_one_another():
    same = detections_of(*[(0.9 - i / 10, i, (60, 60, 160, 90)) for i in range(4)])
    picture = draw_detections(blank(), same, ["word"] * 4, short_side=400)
    # The best box hides the outlines of the others, so theirs are the areas of the tags alone.
    tags = [len(pixels_of(picture, class_colour(label))) for label in (1, 2, 3)]
    assert min(tags) > 0.9 * max(tags)


@pytest.mark.parametrize("box", [(-50, -50, 500, 500), (150, 80, 20, 10), (300, 300, 400, 400), (10, 10, 10, 10)])
def test_boxes_off_the_image_or_inside_out_draw(box):
    picture = draw_detections(blank(), detections_of((0.9, 0, box)), ["a"])
    assert len(pixels_of(picture, class_colour(0)))


def test_the_image_itself_stays():
    image = blank()
    draw_detections(image, detections_of((0.9, 0, (10, 10, 50, 50))), ["a"], short_side=50)
    assert (image == GREY).all()
