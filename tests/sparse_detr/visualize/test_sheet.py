from __future__ import annotations

import numpy as np
import pytest

from sparse_detr.visualize.sheet import Facts, Section, draw_sheet
from sparse_detr.visualize.style import Colour

GAP, MARGIN = 14, 21
DARK = (90, 20, 120)


@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("legend", [(), ((DARK, "the last entry"),)])
@pytest.mark.parametrize("large", [(40, 240), (400, 600)])
def test_nothing_reaches_into_the_margins_and_everything_is_there(
    rows: int, legend: tuple[tuple[Colour, str], ...], large: tuple[int, int]
) -> None:
    """Either column may be the taller one."""
    picture, tile = (np.full((*size, 3), DARK, np.uint8) for size in (large, (60, 100)))
    sections = [Section(heading="A heading", tiles=[tile] * 2, captions=["gypsy"] * 2)] * rows
    facts = Facts(title="A title", lines=("Two lines,", "gypsy."), legend=legend)
    sheet = draw_sheet(picture, facts, sections, tile=(100, 60), gap=GAP)
    for side in (sheet[:MARGIN], sheet[-MARGIN:], sheet[:, :MARGIN], sheet[:, -MARGIN:]):
        assert (side == 255).all()
    dark = (sheet == np.array(DARK)).all(-1)
    pictures = large[0] * large[1] + rows * 2 * 100 * 60
    assert (dark.sum() > pictures) == bool(legend)
    assert dark.sum() - pictures < 400
