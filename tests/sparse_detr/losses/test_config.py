from __future__ import annotations

import pytest

from sparse_detr.errors import ConfigError
from sparse_detr.losses.config import LossConfig


def test_defaults_are_the_papers():
    config = LossConfig()
    assert (config.class_weight, config.box_weight, config.giou_weight) == (2, 5, 2)
    assert (config.match_class_cost, config.match_box_cost, config.match_giou_cost) == (2, 5, 2)
    assert (config.focal_alpha, config.focal_gamma) == (0.25, 2)
    assert (config.token_scoring_weight, config.encoder_auxiliary_weight) == (1, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_weight", -1.0),
        ("box_weight", float("nan")),
        ("giou_weight", float("inf")),
        ("encoder_auxiliary_weight", -0.5),
        ("focal_alpha", 1.5),
        ("focal_gamma", -2.0),
    ],
)
def test_refuses_by_name_and_value(field, value):
    with pytest.raises(ConfigError, match=rf"loss\.{field}: {value}"):
        LossConfig(**{field: value})


def test_refuses_matching_by_nothing():
    with pytest.raises(ConfigError, match="matches at random"):
        LossConfig(match_class_cost=0.0, match_box_cost=0.0, match_giou_cost=0.0)


def test_zero_weights_are_allowed():
    assert LossConfig(encoder_auxiliary_weight=0.0, token_scoring_weight=0.0).encoder_auxiliary_weight == 0
