"""`existing` is the one word of all commands for results that are there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pipelines.convert.config import ConvertConfig
from pipelines.data.config import ImportVocConfig, MakeShapesConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.explain.config import ExplainConfig
from pipelines.predict.config import PredictConfig
from pipelines.recipes.config import RunConfig
from sparse_detr.errors import ConfigError
from tune.config import SweepConfig

COMMANDS: dict[str, Callable[[Any], object]] = {
    "predict": lambda word: PredictConfig(model="m", images="i", output="o", existing=word),
    "evaluate": lambda word: EvaluateConfig(model="m", images="i", annotations="a", existing=word),
    "explain": lambda word: ExplainConfig(model="m", image="i", existing=word),
    "convert": lambda word: ConvertConfig(source="s", output="o", existing=word),
    "import-voc": lambda word: ImportVocConfig(root=Path("v"), split="train", output="o", existing=word),
    "shapes": lambda word: MakeShapesConfig(output="o", existing=word),
    "sweep": lambda word: SweepConfig(run=RunConfig(existing=word)),
    "train": lambda word: RunConfig(existing=word),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_knows_the_word(command: str) -> None:
    make = COMMANDS[command]
    for word in ("refuse", "overwrite"):
        assert "overwrite" not in {field.name for field in fields(make(word))}  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="existing: 'append' is not known"):
        make("append")
    if command == "train":
        make("resume")
        return
    with pytest.raises(ConfigError, match=r"existing: 'resume' continues a training.*choose refuse or overwrite"):
        make("resume")
