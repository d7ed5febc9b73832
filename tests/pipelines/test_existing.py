"""`existing` is the one word of all commands for results that are there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.commands import COMMANDS as TABLE
from pipelines.cli.commands import flattened, imported
from pipelines.convert.config import ConvertConfig
from pipelines.data.config import ImportVocConfig, MakeShapesConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.explain.config import ExplainConfig
from pipelines.predict.config import PredictConfig
from pipelines.recipes.config import RunConfig
from pipelines.view.config import ViewConfig
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
    "view": lambda word: ViewConfig(output="o", existing=word),
    "train": lambda word: RunConfig(existing=word),
}


WITHOUT = {
    "demo": "replaces the demo in its own folder, and nothing else; a lock keeps two apart",
    "bench op": "--json: a report that is measured again",
    "bench growth": "--plot: a report that is measured again",
    **dict.fromkeys(["cost", "doctor", "submit", "submit status", "submit logs", "submit stop", "data check",
                     "bench table", "bench trace"], "writes nothing"),
}  # fmt: skip


def test_every_command_of_the_table_is_looked_at() -> None:
    own = {name.rpartition(" ")[2] for name in flattened(TABLE) if name not in WITHOUT}
    assert own == set(COMMANDS)
    for name, command in flattened(TABLE).items():
        names = {field.name for field in fields(imported(command.config))}
        inner = {field.name for field in fields(RunConfig)} if "run" in names else set()
        assert ("existing" in names | inner) != (name in WITHOUT), name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_knows_the_word(command: str) -> None:
    make = COMMANDS[command]
    for word in ("refuse", "overwrite"):
        assert "overwrite" not in {field.name for field in fields(make(word))}  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="existing: 'append' is not known"):
        make("append")
    if command in ("train", "predict"):
        make("resume")
        return
    with pytest.raises(
        ConfigError, match=r"existing: 'resume' continues a training or a prediction.*choose refuse or overwrite"
    ):
        make("resume")
