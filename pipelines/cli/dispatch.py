"""Finds the command that the words name, and runs it."""

from __future__ import annotations

import difflib

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.cli import commands
from pipelines.cli.commands import Command, Group, imported


def dispatch(program: str, table: commands.Table, words: list[str]) -> int:
    """Run the command that the first word names; returns its exit code, 2 for a word that names none."""
    word = words[0] if words else "--help"
    if word in ("-h", "--help"):
        print_commands(program, table)
        return 0
    if word not in table:
        near = difflib.get_close_matches(word, table, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(table)}"
        Console(stderr=True).print(f"[bold red]error:[/] {escape(program)} {escape(word)}: no such command; {hint}")
        return 2
    found = table[word]
    name = f"{program} {word}"
    return _of_group(name, found, words[1:]) if isinstance(found, Group) else run(name, found, words[1:])


def run(program: str, command: Command, words: list[str]) -> int:
    """Make the command's config from the words, and run it on that."""
    # tyro takes a third of the time of a list of commands, which does not need it.
    from pipelines.cli.parse import parse

    config = parse(program, command, words)
    if config is None:
        return 0 if words else 2
    code: int = imported(command.run)(config)
    return code


def print_commands(program: str, table: commands.Table) -> None:
    """List the commands with their usage and one line each."""
    rows = Table.grid(padding=(0, 2))
    for name, entry in table.items():
        rows.add_row(f"  [bold]{name}[/]", escape(entry.usage), entry.summary)
    console = Console()
    console.print(f"usage: {program} COMMAND ...\n", highlight=False)
    console.print(rows)
    console.print(f"\n`{program} COMMAND --help` explains every option.", highlight=False)


def _of_group(program: str, group: Group, words: list[str]) -> int:
    if group.otherwise is None or (words and words[0] in group.commands):
        return dispatch(program, group.commands, words)
    if not words or words[0] in ("-h", "--help"):
        print_commands(program, group.commands)
        words = ["--help"] if words else words
    return run(program, group.otherwise, words)
