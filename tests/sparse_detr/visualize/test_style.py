from __future__ import annotations

import numpy as np

from sparse_detr.visualize import class_colour, enlarge


def test_classes_have_colours_of_their_own():
    colours = [class_colour(label) for label in range(91)]
    assert len(set(colours)) == 91
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)
    assert min(max(colour) for colour in colours) >= 190  # bright enough to stand out


def test_enlarge_keeps_the_ratio_and_never_shrinks():
    image = np.zeros((50, 100, 3), np.uint8)
    assert enlarge(image, 200).shape == (200, 400, 3)
    assert enlarge(image, 20) is image
