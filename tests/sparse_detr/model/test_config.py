"""Combinations that cannot work are refused by name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from sparse_detr import BackboneConfig, ModelConfig
from sparse_detr.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_ratio": 0.0}, r"keep_ratio: 0.0; .*\(0, 1\]"),
        ({"keep_ratio": 1.01}, "keep_ratio: 1.01"),
        ({"keep_ratio": float("nan")}, "keep_ratio: nan"),
        ({"query_source": "learned", "box_refinement": False, "encoder_auxiliary_loss": False}, "keep_ratio: 0.1 with"),
        ({"query_source": "learned", "keep_ratio": 1.0, "encoder_auxiliary_loss": False}, "box_refinement: True with"),
        ({"query_source": "learned", "keep_ratio": 1.0, "box_refinement": False}, "encoder_auxiliary_loss: True with"),
        ({"heads": 7}, "heads: 7 does not divide channels: 256"),
        ({"channels": 40}, "channels: 40"),
        ({"levels": 2}, "levels: 2"),
        ({"queries": 0}, "queries: 0"),
        ({"dropout": 1.0}, "dropout: 1.0"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**fields)


def test_backbone_stages_refused() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.frozen_stages: 6; give 0 to 5"):
        BackboneConfig(frozen_stages=6)


def test_unknown_words_are_refused() -> None:
    """In a process of its own, because under pytest beartype refuses them before we can."""
    script = """
from sparse_detr.errors import ConfigError
from sparse_detr.model.config import BackboneConfig, ModelConfig
for cls, field in ((ModelConfig, "query_source"), (BackboneConfig, "name"), (BackboneConfig, "norm")):
    try:
        cls(**{field: "nonsense"})
    except ConfigError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert [line.split(" is not known")[0] for line in done.stdout.splitlines()] == [
        "query_source: 'nonsense'",
        "backbone.name: 'nonsense'",
        "backbone.norm: 'nonsense'",
    ]
