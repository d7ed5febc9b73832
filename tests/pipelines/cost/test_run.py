"""The command `cost`."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from pipelines.cli.main import main
from pipelines.cost.command import parts_table
from pipelines.cost.config import CostConfig
from pipelines.cost.run import run_cost
from pipelines.recipes.override import override
from pipelines.recipes.registry import RECIPES, get_recipe
from sparse_detr.cost.model import model_cost
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError
from sparse_detr.records import ImageSize
from sparse_detr.weights.model_folder import save_model


def _text(table: Table, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_counted_at_its_own_size(name: str) -> None:
    data = get_recipe(name).data
    cost = run_cost(CostConfig(recipe=name, latency=False)).cost
    assert (cost.height, cost.width) == (data.short_side, min(data.short_side * 4 // 3, data.max_side))
    assert cost == model_cost(get_recipe(name).model, cost.height, cost.width)


def test_size_and_keep_ratio_are_options() -> None:
    report = run_cost(CostConfig(recipe="tiny", height=97, width=65, keep_ratio=0.9, latency=False))
    assert report.cost == model_cost(get_recipe("tiny").model, 97, 65, 0.9)
    assert report.latency is None


def test_a_model_folder_in_place_of_a_recipe(tmp_path: Path) -> None:
    config = override(get_recipe("tiny"), {"model.channels": 32, "model.keep_ratio": 0.5}).model
    model = SparseDetr(config)
    model.image_size = ImageSize(short_side=72, max_side=80)
    save_model(tmp_path / "model", model)
    report = run_cost(CostConfig(recipe=str(tmp_path / "model"), runs=1, warm_up=0, device="cpu"))
    assert report.cost == model_cost(config, 72, 80)
    assert report.trained
    assert report.latency is not None
    assert report.latency.runs == 1


def test_what_is_neither_recipe_nor_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tinny' does not exist; did you mean tiny\? A model folder may"):
        run_cost(CostConfig(recipe="tinny"))
    with pytest.raises(CheckpointError, match="absent, not a model folder"):
        run_cost(CostConfig(recipe=str(tmp_path / "nothing")))


def test_table_shows_the_parts_within_80_columns() -> None:
    cost = run_cost(CostConfig(recipe="r50_rho10", height=800, width=1066, latency=False)).cost
    text = _text(parts_table("r50_rho10", cost))
    rows = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in text.splitlines()
            if line.startswith("│")}  # fmt: skip
    assert list(rows) == ["backbone", "projection", "scorer", "encoder", "proposals", "decoder", "whole model"]
    assert rows["backbone"] == ["69.98", "0.00", "0.00", "69.98", "68.1%", "23,454,912"]
    assert rows["encoder"][:4] == ["14.37", "0.18", "0.03", "14.57"]
    assert "1783 of 17821 tokens" in " ".join(text.split())
    assert "…" not in text


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "tiny", "--height", "64", "--width", "64", "--runs", "1", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "tiny on 64x64" in shown
    assert "median" in shown
    assert main(["cost", "tiny", "--no-latency"]) == 0
    assert "median" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "recipe: 'nope' does not exist"),
        (["tiny", "--width", "0"], "width: 0"),
        (["tiny", "--keep-ratio", "1.5"], "keep_ratio: 1.5"),
        (["r50_dense", "--keep-ratio", "0.5"], "this model was built dense"),
    ],
)
def test_user_errors_end_with_2_and_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_options_are_checked_as_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["cost", "tiny", "--runs", "0"])
    assert exit_info.value.code == 2
    assert "runs: 0; give at least 1" in capsys.readouterr().err
