from __future__ import annotations

import pytest

from pipelines.evaluate.categories import match_categories, translate_results
from sparse_detr.errors import ConfigError
from sparse_detr.records import Classes

SHAPES = Classes(names=("disc", "square", "star"), category_ids=(2, 5, 9))


def test_classes_of_the_same_ids_and_names_stay() -> None:
    data = Classes(names=("star", "disc"), category_ids=(9, 2))
    assert match_categories(SHAPES, 3, data) == {9: 9, 2: 2}


def test_classes_that_were_numbered_anew_are_matched_by_name() -> None:
    data = Classes(names=("disc", "star"), category_ids=(5, 2))
    assert match_categories(SHAPES, 3, data) == {2: 5, 9: 2}


def test_unknown_class_is_refused_and_both_sides_are_named() -> None:
    with pytest.raises(ConfigError, match="classes cell are not classes of the model, which knows disc, square, star"):
        match_categories(SHAPES, 3, Classes(names=("disc", "cell"), category_ids=(2, 5)))


def test_same_ids_under_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="rbc, wbc, platelets"):
        match_categories(SHAPES, 3, Classes(names=("rbc", "wbc", "platelets"), category_ids=(2, 5, 9)))


def test_model_without_names_gives_raw_ids() -> None:
    assert match_categories(None, 91, Classes(names=("person", "toothbrush"), category_ids=(1, 90))) == {1: 1, 90: 90}
    with pytest.raises(ConfigError, match="ids 0 to 79"):
        match_categories(None, 80, Classes(names=("person", "toothbrush"), category_ids=(1, 90)))


def test_results_of_classes_that_the_data_lacks_are_left_out() -> None:
    found = translate_results([{"category_id": 5, "score": 0.5}, {"category_id": 9, "score": 0.1}], {5: 1})
    assert found == [{"category_id": 1, "score": 0.5}]
