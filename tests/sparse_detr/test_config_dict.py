"""Configurations to dictionaries and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_detr import BackboneConfig, Classes, ModelConfig
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import ConfigError

configs = st.builds(
    ModelConfig,
    num_classes=st.integers(1, 400),
    backbone=st.builds(
        BackboneConfig,
        name=st.sampled_from(["resnet18", "resnet50", "resnet_tiny"]),
        norm=st.sampled_from(["frozen_batch_norm", "group_norm"]),
        frozen_stages=st.integers(0, 5),
    ),
    channels=st.sampled_from([64, 128, 256]),
    levels=st.integers(3, 6),
    keep_ratio=st.floats(0, 1, exclude_min=True),
    encoder_auxiliary_loss=st.booleans(),
    dropout=st.floats(0, 1, exclude_max=True),
)


@settings(max_examples=50, deadline=None)
@given(configs)
def test_round_trip_through_json(config: ModelConfig) -> None:
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_sequences_become_lists_and_come_back() -> None:
    classes = Classes(names=("cat", "dog"), category_ids=(17, 18))
    data = to_dict(classes)
    assert data == {"names": ["cat", "dog"], "category_ids": [17, 18]}
    assert from_dict(Classes, data) == classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """For optional fields and fields that are mappings."""

    model: ModelConfig | None
    rate: float | None
    extra: dict[str, float]


def test_optional_fields() -> None:
    outer = Outer(model=ModelConfig(), rate=1.5, extra={"a": 1.0})
    assert from_dict(Outer, to_dict(outer)) == outer
    assert from_dict(Outer, {"model": None, "rate": None, "extra": {}}) == Outer(model=None, rate=None, extra={})
    broken = to_dict(outer)
    broken["model"]["backbone"]["frozen_stage"] = 1
    with pytest.raises(ConfigError, match=r"^model\.backbone\.frozen_stage: unknown field; did you mean .*stages\?"):
        from_dict(Outer, broken)


def test_a_whole_number_serves_as_float() -> None:
    config = from_dict(ModelConfig, to_dict(ModelConfig()) | {"keep_ratio": 1})
    assert config.keep_ratio == 1.0
    assert isinstance(config.keep_ratio, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(keep_raito=0.1), r"^keep_raito: unknown field; did you mean keep_ratio\?"),
        (lambda d: d.update(zzz=1), "^zzz: unknown field; its fields are num_classes, "),
        (lambda d: d.pop("heads"), "^heads: missing"),
        (lambda d: d["backbone"].pop("norm"), r"^backbone\.norm: missing"),
        (lambda d: d.update(heads="8"), "^heads: '8'; give a value of type int"),
        (lambda d: d.update(heads=True), "^heads: True; give a value of type int"),
        (lambda d: d.update(dropout=None), "^dropout: None; give a value of type float"),
        (lambda d: d.update(box_refinement=1), "^box_refinement: 1; give a value of type bool"),
        (lambda d: d.update(heads="8", points=1.5), "^heads: '8'; .*; points: 1.5; give"),
        (lambda d: d["backbone"].update(name="vgg"), r"^backbone\.name: 'vgg' is not known; choose one of resnet18"),
        (lambda d: d["backbone"].update(frozen_stages=9), r"^backbone\.frozen_stages: 9; give 0 to 5"),
        (lambda d: d.update(heads=7), "^heads: 7 does not divide channels: 256"),
        (lambda d: d.update(backbone=3), "^backbone: 3; give a dictionary"),
    ],
)
def test_wrong_dictionaries(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    data = to_dict(ModelConfig())
    change(data)
    with pytest.raises(ConfigError, match=message):
        from_dict(ModelConfig, data)
