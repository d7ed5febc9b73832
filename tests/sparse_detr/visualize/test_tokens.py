from __future__ import annotations

import numpy as np
import torch

from sparse_detr.visualize import agreement_overlay, kept_tokens_overlay, saliency_overlay
from sparse_detr.visualize.tokens import AGREEMENT_COLOURS

SHAPES = ((4, 4), (2, 2))


def blank(height=64, width=64, value=128):
    return np.full((height, width, 3), value, np.uint8)


def brightness(picture):
    return picture.astype(float).mean(-1)


def test_saliency_is_bright_where_it_is_high():
    saliency = torch.zeros(20)
    saliency[0] = 5.0  # level 0, top left
    saliency[16 + 3] = 5.0  # level 1, bottom right
    fine = brightness(saliency_overlay(blank(), saliency, SHAPES, level=0))
    assert fine[2, 2] > fine[60, 60] + 50
    coarse = brightness(saliency_overlay(blank(), saliency, SHAPES, level=1))
    assert coarse[60, 60] > coarse[2, 2] + 50
    both = brightness(saliency_overlay(blank(), saliency, SHAPES))
    assert both[30, 2] < min(both[2, 2], both[60, 60])


def test_saliency_of_one_value_draws():
    assert saliency_overlay(blank(), torch.zeros(20), SHAPES).shape == (64, 64, 3)


def test_kept_cells_are_bright_and_the_rest_dim():
    picture = kept_tokens_overlay(blank(), torch.tensor([5]), SHAPES, level=0)  # row 1, column 1 of 4 x 4
    bright = (picture == 128).all(-1)
    ys, xs = np.argwhere(bright).T
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (17, 30, 17, 30)  # a cell of 16 without its outline
    assert tuple(picture[16, 20]) == (255, 214, 64)
    assert (picture[40, 40] == 32).all()


def test_levels_together_are_brighter_where_more_keep():
    picture = brightness(kept_tokens_overlay(blank(), torch.tensor([0, 16]), SHAPES))
    assert picture[4, 4] == 128  # both levels
    assert 32 < picture[28, 28] < 128  # the coarse level alone
    assert picture[60, 60] == 32


def test_agreement_has_a_colour_for_each_case():
    kept, attended = torch.tensor([0, 5]), torch.tensor([5, 15])
    picture = agreement_overlay(blank(), kept, attended, SHAPES, level=0).astype(int)
    both, kept_only, attended_only = AGREEMENT_COLOURS
    for place, colour in (((20, 20), both), ((4, 4), kept_only), ((60, 60), attended_only)):
        # 0.6 of the colour over 0.4 of the grey image, darkened to 96.
        assert np.abs(picture[place] - (0.6 * np.array(colour) + 0.4 * 96)).max() <= 1
    assert (picture[4, 60] == 96).all()  # neither: the image, grey and darker


def test_agreement_of_all_levels_is_stronger_where_more_levels_have_it():
    both = torch.tensor([0, 16])  # top left on both levels; the coarse token covers a quarter
    picture = agreement_overlay(blank(), both, both, SHAPES).astype(float)
    colourful = lambda y, x: np.ptp(picture[y, x])  # noqa: E731
    assert colourful(4, 4) > colourful(28, 28) > colourful(60, 60) == 0
