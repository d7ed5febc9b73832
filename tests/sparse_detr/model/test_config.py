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
        ({"shared_heads": True}, "shared_heads: True with encoder_auxiliary_loss: True"),
        ({"attention": "full", "keep_ratio": 1.0}, "attention: 'full' with top-k queries"),
        (
            {"attention": "full", "keep_ratio": 1.0, "query_source": "learned", "encoder_auxiliary_loss": False},
            "attention: 'full' with top-k queries or box refinement",
        ),
        ({"levels": 1}, "levels: 1 with attention: 'deformable'"),
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frozen_stages": 6}, r"backbone\.frozen_stages: 6; give 0 to 5"),
        ({"name": "swin_tiny", "drop_path": 1.0}, r"backbone\.drop_path: 1.0; give a number in \[0, 1\)"),
        ({"drop_path": 0.1}, r"backbone\.drop_path: 0.1 with backbone\.name: 'resnet50'; only swin_tiny has it"),
        ({"name": "swin_tiny", "norm": "group_norm"}, r"backbone\.norm: 'group_norm' with backbone\.name: 'swin_tiny'"),
    ],
)
def test_backbone_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(**fields)


def test_unknown_words_are_refused() -> None:
    """In a process of its own, because under pytest beartype refuses them before we can."""
    script = """
from sparse_detr.errors import ConfigError
from sparse_detr.model.config import BackboneConfig, ModelConfig
words = ("attention", "query_source", "query_content", "proposal_score", "token_criterion", "scoring_mean")
for cls, fields in ((ModelConfig, words), (BackboneConfig, ("name", "norm"))):
    for field in fields:
        try:
            cls(**{field: "nonsense"})
        except ConfigError as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    lines = done.stdout.splitlines()
    assert [line.split(" is not known")[0] for line in lines] == [
        "attention: 'nonsense'",
        "query_source: 'nonsense'",
        "query_content: 'nonsense'",
        "proposal_score: 'nonsense'",
        "token_criterion: 'nonsense'",
        "scoring_mean: 'nonsense'",
        "backbone.name: 'nonsense'",
        "backbone.norm: 'nonsense'",
    ]
    assert lines[4].endswith("choose decoder_attention or objectness")
