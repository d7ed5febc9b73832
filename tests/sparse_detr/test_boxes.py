from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_detr.boxes import area, cxcywh_to_xyxy, paired_giou, xyxy_to_cxcywh

# Areas 4, 4, 1 and 16 on a grid of unit squares.
FIRST, SHIFTED, INNER, AROUND = (0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0), (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 4.0, 4.0)
BY_HAND = [
    pytest.param(FIRST, FIRST, 1.0, id="the same"),
    # 1 shared, 7 covered, 9 in the hull.
    pytest.param(FIRST, SHIFTED, 1 / 7 - 2 / 9, id="overlap"),
    pytest.param(FIRST, INNER, 1 / 4, id="one in the other"),
    pytest.param(FIRST, AROUND, 1 / 4, id="one around the other"),
    # 0 shared, 8 covered, 4 x 2 in the hull.
    pytest.param(FIRST, (2.0, 0.0, 4.0, 2.0), 0.0, id="side by side"),
    # 0 shared, 8 covered, 6 x 6 in the hull.
    pytest.param(FIRST, (4.0, 4.0, 6.0, 6.0), -28 / 36, id="apart"),
]
coordinates = st.integers(0, 12)
corners = st.tuples(coordinates, coordinates, st.integers(1, 8), st.integers(1, 8)).map(
    lambda found: (found[0], found[1], found[0] + found[2], found[1] + found[3])
)


def _boxes(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _pixels(box: tuple[int, ...]) -> np.ndarray:
    canvas = np.zeros((20, 20), dtype=bool)
    canvas[box[1] : box[3], box[0] : box[2]] = True
    return canvas


def _counted_giou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """The definition, by counting pixels; the hull is the box around all that is covered."""
    shared, covered = _pixels(a) & _pixels(b), _pixels(a) | _pixels(b)
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    hull = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return float(shared.sum() / covered.sum() - (hull - covered.sum()) / hull)


def test_forms_by_hand() -> None:
    centred, cornered = _boxes((3.0, 5.0, 4.0, 2.0)), _boxes((1.0, 4.0, 5.0, 6.0))

    assert torch.equal(cxcywh_to_xyxy(centred), cornered)
    assert torch.equal(xyxy_to_cxcywh(cornered), centred)
    assert area(cornered).tolist() == [8.0]


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 2, *[st.floats(0, 1e3)] * 2), max_size=5))
def test_forms_there_and_back(rows: list[tuple[float, ...]]) -> None:
    boxes = _boxes(*rows).reshape(-1, 4)

    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, rtol=0, atol=1e-9)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("a", "b", "giou"), BY_HAND)
def test_giou_by_hand(a: tuple[float, ...], b: tuple[float, ...], giou: float) -> None:
    assert paired_giou(_boxes(a), _boxes(b)).tolist() == pytest.approx([giou])
    assert paired_giou(_boxes(b), _boxes(a)).tolist() == pytest.approx([giou])


@settings(deadline=None)
@given(st.lists(corners, min_size=1, max_size=4), st.lists(corners, min_size=1, max_size=4))
def test_giou_is_what_counting_pixels_gives(some: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> None:
    pairs = [(a, b) for a in some for b in others]
    counted = torch.tensor([_counted_giou(a, b) for a, b in pairs], dtype=torch.float64)

    paired = paired_giou(_boxes(*(a for a, _ in pairs)), _boxes(*(b for _, b in pairs)))
    torch.testing.assert_close(paired, counted)
