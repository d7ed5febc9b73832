"""Options of a command from the fields of its config, by tyro; a recipe gives their defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cli.commands import Command, imported


def parse(program: str, command: Command, words: list[str]) -> Any | None:
    """The command's config; None once the recipes were listed, because none was named.

    Raises:
        SystemExit: the words ask for help (code 0), or do not fit the options (code 2); tyro has said so.
        ConfigError: there is no such recipe, or a value is refused by its config.
    """
    words, rest = _split(words) if command.rest else (words, [])
    named, words = _leading(command, words)
    alone = bool(command.alone) and not named and _gives(words, command.alone)
    if "recipe" in command.words and "recipe" not in named and not _gives(words, "--recipe") and not alone:
        _print_recipes(program, to_stderr=not words)
        return None
    kind = imported(command.config)
    more: dict[str, Any] = {}
    if command.default and not alone:
        recipe, words = (named.pop("recipe"), words) if named else _taken(words, "--recipe")
        program, more = f"{program} {recipe}", {"default": imported(command.default)(recipe)}
    elif named:
        program += f" {named['recipe']}" if "recipe" in named else ""
        words = [part for name, value in named.items() for part in (f"--{name}", value)] + words
    config = tyro.cli(kind, prog=program, args=words, **more)
    return replace(config, **{command.rest: tuple(rest)}) if command.rest else config


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before `--`, and those behind it."""
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def _leading(command: Command, words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The fields that leading words fill, and the other words."""
    limit = len(command.words)
    count = next((i for i, word in enumerate(words[:limit]) if word.startswith("-")), min(limit, len(words)))
    return dict(zip(command.words, words[:count], strict=False)), words[count:]


def _gives(words: list[str], option: str) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)


def _taken(words: list[str], option: str) -> tuple[str, list[str]]:
    """The value of an option, and the words without it."""
    place = next(i for i, word in enumerate(words) if word == option or word.startswith(f"{option}="))
    if "=" in words[place]:
        return words[place].partition("=")[2], words[:place] + words[place + 1 :]
    return " ".join(words[place + 1 : place + 2]), words[:place] + words[place + 2 :]


def _print_recipes(program: str, *, to_stderr: bool) -> None:
    from pipelines.recipes.registry import RECIPES

    table = Table.grid(padding=(0, 2))
    for name, build in RECIPES.items():
        table.add_row(f"  [bold]{name}[/]", escape((build.__doc__ or "").strip().split("\n")[0]))
    console = Console(stderr=to_stderr)
    console.print(f"usage: {program} RECIPE [OPTIONS]\n\nRecipes:", highlight=False)
    console.print(table)
    console.print(f"\n`{program} RECIPE --help` explains every option and shows the recipe's values.", highlight=False)
