"""Commands that README and docs quote: the real parser takes each, without running it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli.commands import COMMANDS, Command, Group
from pipelines.cli.parse import parse

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "infra").rglob("*.md"),
         ROOT / "csrc" / "README.md"]  # fmt: skip
# A word of a page that stands for the reader's own, with one that the parser takes.
MEANT = {"$recipe": "tiny", "RECIPE": "tiny"}


def quoted(text: str) -> Iterator[str]:
    """Commands of indented or fenced blocks and of inline code, continued lines in one, without comments."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [line.strip() for line in joined.splitlines() if line.startswith("    ")]
    for line in lines + re.findall(r"`([^`\n]+)`", joined):
        for part in re.split(r" && |; ", line.removeprefix("$ ")):
            command = re.split(r"\s+#(?!sha)", part)[0].strip()
            if re.match(r"(sparse-detr|make|python3? -m pipelines)\b", command):
                yield command


ALL = sorted({(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in quoted(page.read_text())})


def check(words: list[str]) -> None:
    """Raise SystemExit(2) or an error where the command is none of ours, or an option of it is unknown."""
    entry, program = COMMANDS, "sparse-detr"
    while True:
        found = entry[words[0]]
        program, words = f"{program} {words[0]}", words[1:]
        if isinstance(found, Command):
            break
        assert isinstance(found, Group)
        if not words:
            return
        if found.otherwise is not None and words[0] not in found.commands:
            found = found.otherwise
            break
        entry = found.commands
    if words and words[-1] not in ("--help", "-h"):
        behind = words[words.index("--") + 1 :] if "--" in words else []
        parse(program, found, words)
        if behind:
            check(behind)


def complete(words: list[str]) -> list[str]:
    """The command as a reader would type it."""
    return [MEANT.get(word, word) for word in words if word != "..."]


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command[:60]}" for page, command in ALL])
def test_quoted_commands_parse(page: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        named = [word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word)]
        assert set(named) <= set(targets)
        return
    if words[0].startswith("python"):
        assert (ROOT / words[2].replace(".", "/")).exists()
        return
    try:
        check(complete(words[1:]))
    except SystemExit as stop:
        said = capsys.readouterr()
        # A command that ends in an ellipsis, or is named in passing, may lack what it needs; nothing may be unknown.
        short = "..." in words or len(words) <= 4
        if stop.code != 0 and not (short and "Missing" in said.err + said.out):
            pytest.fail(said.err + said.out)


def test_there_are_commands() -> None:
    assert len(ALL) > 40
    assert {page for page, _ in ALL} >= {"README.md", "docs/cost.md", "docs/op.md", "docs/results.md"}


@pytest.mark.parametrize("command", ["train tiny --training.epoch 3", "predikt", "evaluate --model m --keep-rato 0.1",
                                     "submit --address http://h:1 -- train tiny --modell.x 1"])  # fmt: skip
def test_a_misspelt_command_is_found(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, KeyError)) as stop:
        check(command.split())
    assert isinstance(stop.value, KeyError) or "nrecognized" in capsys.readouterr().err
