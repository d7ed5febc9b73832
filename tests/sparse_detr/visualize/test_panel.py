from __future__ import annotations

import numpy as np
import pytest

from sparse_detr.visualize import panel


def plain(height, width, value):
    return np.full((height, width, 3), value, np.uint8)


def test_side_by_side_at_one_height():
    sheet = panel([plain(50, 100, 10), plain(200, 100, 20)], height=100, gap=10)
    assert sheet.shape == (120, 10 + 200 + 10 + 50 + 10, 3)
    assert (sheet[10:110, 10:210] == 10).all()
    assert (sheet[10:110, 220:270] == 20).all()
    assert (sheet[:, :10] == 255).all()


def test_captions_stand_below_and_are_cut_to_the_picture():
    pictures = [plain(100, 100, 10), plain(100, 100, 20)]
    without = panel(pictures, height=100, gap=10)
    sheet = panel(pictures, ["short", "a caption far too long for a picture of this width"], height=100, gap=10)
    assert sheet.shape[0] > without.shape[0]
    text = sheet[110:-10]
    assert (text[:, 10:110] < 128).any()
    assert (text[:, 120:220] < 128).any()
    assert (text[:, 110:120] == 255).all()
    assert (text[:, 220:] == 255).all()


def test_columns_wrap():
    sheet = panel([plain(40, 40, 10)] * 3, height=40, gap=10, columns=2)
    assert sheet.shape == (110, 110, 3)
    assert (sheet[60:100, 60:100] == 255).all()  # the fourth place is free


@pytest.mark.parametrize(("count", "captions"), [(0, None), (2, ["one"])])
def test_refuses(count, captions):
    with pytest.raises(ValueError, match=f"pictures: {count}"):
        panel([plain(4, 4, 0)] * count, captions)
