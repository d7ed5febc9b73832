"""Every command that README, CHANGELOG (newest part), CONTRIBUTING, docs and infra quote is one that parsers take."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.bench.op import command as bench_op
from pipelines.cli.commands import COMMANDS, Command, Group
from pipelines.cli.parse import parse
from sparse_detr.errors import ConfigError

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
         *sorted((ROOT / "infra").rglob("*.md"))]  # fmt: skip
_INLINE = re.compile(r"`([^`]+)`")
_START = re.compile(r"^(?:sparse-detr|python -m pipelines\.\S+|make) [a-z-]|^python -m pipelines\.\S+$")
_MISSING = "required"
_RECIPE = "tiny"


def quoted(text: str) -> Iterator[str]:
    """Commands of the indented code blocks and of inline code, lines that go on put together, without comments."""
    fence = False
    lines = []
    for line in text.replace("\\\n", " ").splitlines():
        fence ^= line.lstrip().startswith("```")
        lines.append(line.strip() if fence or line.startswith("    ") else "")
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    inline = [" ".join(found.split()) for found in _INLINE.findall(prose)]
    for line in [*lines, *inline]:
        start = re.sub(r"^(?:\$ |docker run .* (?=sparse-detr [a-z]))", "", line)
        if _START.match(start):
            yield start


def current(file: Path) -> str:
    """The text that must be true today; older versions of the changelog name what there was then."""
    text = file.read_text()
    return text.split("\n## ")[1] if file.name == "CHANGELOG.md" else text


QUOTED = sorted({(str(file.relative_to(ROOT)), line) for file in FILES for line in quoted(current(file))})


def check(line: str) -> None:
    """Raise AssertionError for a command, option, value or target that there is not."""
    words = [_RECIPE if word == "$recipe" else word for word in shlex.split(line, comments=True)]
    partial = "..." in words
    words = [word for word in words if word != "..."]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"{line}: no such target"
    elif words[0] == "python":
        assert words[2] == "pipelines.bench.op", f"{line}: no module that is run like this"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench_op, "bench_op", lambda _config: 0)
            _quietly(line, partial, lambda: bench_op.main(words[3:]))
    else:
        _check_words("sparse-detr", COMMANDS, words[1:], line, partial)


def _check_words(program: str, table: object, words: list[str], line: str, partial: bool) -> None:
    assert isinstance(table, dict)
    entry = table.get(words[0])
    assert entry is not None, f"{line}: no such command"
    rest = words[1:]
    if isinstance(entry, Group):
        if rest and rest[0] in entry.commands:
            return _check_words(program, dict(entry.commands), rest, line, partial)
        if not rest or entry.otherwise is None:
            assert not rest, f"{line}: no such command"
            return None
        entry = entry.otherwise
    assert isinstance(entry, Command)
    if "--" in rest and entry.rest:
        _check_words(program, table, rest[rest.index("--") + 1 :], line, partial)
    # The bare name of a command is a mention; so is one with a part of its words.
    if rest and rest != ["--help"]:
        command = entry
        _quietly(line, partial, lambda: parse(f"{program} {words[0]}", command, rest))
    return None


def _quietly(line: str, partial: bool, run: object) -> None:
    assert callable(run)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            run()
    except (ConfigError, ValueError, argparse.ArgumentError) as error:
        raise AssertionError(f"{line}: {error}") from error
    except SystemExit as error:
        text = said.getvalue().lower()
        allowed = partial and _MISSING in text and "unrecognized" not in text
        if error.code and not allowed:
            raise AssertionError(f"{line}: {said.getvalue()}") from error


def test_commands_are_found() -> None:
    lines = [line for _, line in QUOTED]
    assert len(lines) > 40
    assert {line.split()[0] for line in lines} == {"sparse-detr", "python", "make"}
    assert {file.split("/")[0] for file, _ in QUOTED} == {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "docs",
        "infra",
    }


@pytest.mark.parametrize(("file", "line"), QUOTED, ids=[f"{file}: {line[:60]}" for file, line in QUOTED])
def test_quoted_command_parses(file: str, line: str) -> None:
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        "sparse-detr predict --modle runs/model --images photos --output runs/found",
        "sparse-detr predict --modle runs/model ...",
        "sparse-detr train r18_rho3 --output runs/mine",
        "sparse-detr train tiny --training.epoch 3 ...",
        "sparse-detr submit --address http://head:8265 -- trian tiny",
        "sparse-detr bench opp",
        "python -m pipelines.bench.op --thread-count 1",
        "make demmo",
    ],
)
def test_a_misspelt_command_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check(line)
