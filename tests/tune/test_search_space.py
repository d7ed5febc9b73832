from __future__ import annotations

import pytest

from sparse_detr.errors import ConfigError
from tune.search_space import SearchSpace, as_overrides

SPACE = SearchSpace(keep_ratio=(0.1, 0.3, 1.0), encoder_auxiliary_weight=(1.0, 0.0))


def test_the_whole_grid_has_every_combination_once() -> None:
    grid = SPACE.grid()

    assert len(grid) == SPACE.size == 6
    assert {(p["keep_ratio"], p["encoder_auxiliary_weight"]) for p in grid} == {
        (ratio, weight) for ratio in (0.1, 0.3, 1.0) for weight in (1.0, 0.0)
    }


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (2, 4), (4, 6), (1, 3)])
def test_grids_of_other_sizes_are_whole_too(sizes: tuple[int, int]) -> None:
    ratios = tuple((i + 1) / 10 for i in range(sizes[0]))
    weights = tuple(float(i) for i in range(sizes[1]))
    grid = SearchSpace(keep_ratio=ratios, encoder_auxiliary_weight=weights).grid()

    assert len({tuple(p.items()) for p in grid}) == sizes[0] * sizes[1]


def test_the_first_trials_already_vary_both_fields() -> None:
    first = SPACE.grid(3)

    assert [p["keep_ratio"] for p in first] == [0.1, 0.3, 1.0]
    assert {p["encoder_auxiliary_weight"] for p in first} == {1.0, 0.0}


@pytest.mark.parametrize("trials", [0, 7])
def test_trials_beyond_the_grid_are_refused(trials: int) -> None:
    with pytest.raises(ConfigError, match=f"trials: {trials}; the grid has 6 combinations"):
        SPACE.grid(trials)


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("keep_ratio", (), "at least one value"),
        ("keep_ratio", (0.1, 0.1), "none twice"),
        ("keep_ratio", (0.1, 1.5), r"1\.5; give numbers in \(0, 1\]"),
        ("encoder_auxiliary_weight", (-1.0,), r"-1\.0; give finite numbers"),
        ("encoder_auxiliary_weight", (float("nan"),), "nan; give finite numbers"),
    ],
)
def test_values_that_cannot_work_are_refused(field: str, values: tuple[float, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=f"space.{field}: .*{words}"):
        SearchSpace(**{field: values})


def test_names_stand_for_fields_of_the_run() -> None:
    changes = as_overrides({"keep_ratio": 0.5, "encoder_auxiliary_weight": 2})

    assert changes == {"model.keep_ratio": 0.5, "loss.encoder_auxiliary_weight": 2.0}
