"""The command line: help, exit codes, one clear message in place of a traceback."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import time
import typing
from pathlib import Path
from types import UnionType
from typing import Any

import pytest

from pipelines.cli import main as cli
from pipelines.cli.commands import COMMANDS, Command, flattened, imported
from pipelines.recipes.registry import RECIPES
from sparse_detr.errors import CheckpointError, ConfigError

CONFIGS = {command.config: imported(command.config) for command in flattened(COMMANDS).values()}


def _run(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def _configs(kind: type) -> set[type]:
    """A config class and those nested in it, with the classes that they inherit fields from."""
    found = {base for base in kind.__mro__ if dataclasses.is_dataclass(base)}
    for hint in typing.get_type_hints(kind).values():
        options = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
        for option in options:
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                found |= _configs(option)
    return found


def _explained(kind: type) -> set[str]:
    """Fields of a class that a docstring follows."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    return {
        field.target.id
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS.values(), ids=lambda kind: kind.__name__)
def test_help_explains_every_field(kind: type) -> None:
    silent = [f"{one.__name__}.{name}" for one in _configs(kind) for name in inspect.get_annotations(one)
              if name not in _explained(one)]  # fmt: skip
    assert silent == []


def test_help_comes_at_once_without_the_heavy_parts() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pipelines.cli.main import main; main(['--help']); print(sorted(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seconds = time.monotonic() - started
    usage, _, modules = done.stdout.rpartition("[")
    assert all(f"  {command} " in usage for command in COMMANDS)
    assert not {"'torch'", "'ray'", "'mlflow'", "'numpy'"} & set(modules.rstrip("]\n").split(", "))
    assert seconds < 5


@pytest.mark.parametrize("arguments", [*flattened(COMMANDS), "data", "bench", "train tiny", "sweep tiny", "cost tiny"])
def test_every_command_has_help(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = cli.main([*arguments.split(), "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    out = capsys.readouterr().out
    assert f"sparse-detr {arguments}" in out


@pytest.mark.parametrize("words", ["cost --recipe tiny", "train --recipe tiny", "train --recipe=tiny"])
def test_a_recipe_is_also_an_option(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        cli.main([*words.split(), "--help"])
    assert "Recipes:" not in capsys.readouterr().out


@pytest.mark.parametrize("command", flattened(COMMANDS).values(), ids=flattened(COMMANDS))
def test_every_name_in_the_table_resolves(command: Command) -> None:
    config = imported(command.config)
    names = {field.name for field in dataclasses.fields(config)}
    assert {*command.words, *([command.rest] if command.rest else [])} - names <= (
        {"recipe"} if command.default else set()
    )
    signature = inspect.signature(imported(command.run))
    first, *others = signature.parameters.values()
    hints = typing.get_type_hints(imported(command.run))
    assert (hints[first.name], hints["return"]) == (config, int)
    assert all(other.default is not inspect.Parameter.empty for other in others), "seams have a default"
    if command.default:
        assert isinstance(imported(command.default)("tiny"), config)


@pytest.mark.parametrize("word", ["train", "sweep"])
def test_the_recipes_are_listed(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in RECIPES)
    assert cli.main([word]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sparse-detr 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "did you mean train?"),
        (("data", "chek"), "did you mean check?"),
        (("train", "tinny"), "did you mean tiny?"),
        (("sweep", "tinny"), "did you mean tiny?"),
        (("train", "tiny", "--optimizer.weight-decai", "1"), "--optimizer.weight-decay"),
        (("train", "tiny", "--model.keep-ratio", "0"), "keep_ratio: 0.0; give a number in (0, 1]"),
        (("train", "tiny", "--model.heads", "7"), "does not divide channels"),
        (("train", "tiny", "--training.epochs", "many"), "many"),
        (("demo", "--images", "0"), "images: 0; give at least 1"),
        (("predict", "--model", "m"), "--images"),
        (("evaluate", "--model", "m", "--images", "i", "--annotations", "a", "--keep-ratio"), "keep_ratio: no number"),
        (("submit", "--address", "http://127.0.0.1:9"), "no command"),
        (("submit", "--address", "head", "--", "doctor"), "http://head:8265"),
        (("data", "check", "--annotations", "/none.json", "--images", "/none"), "/none.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_user_errors_are_one_message_and_exit_code_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    try:
        code: object = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_no_traceback_in_a_process_of_its_own() -> None:
    done = _run("train", "tinny")
    assert done.returncode == 2
    assert done.stderr == "error: recipe: 'tinny' does not exist; did you mean tiny?\n"


def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise ValueError("a bug of ours")

    monkeypatch.setattr("pipelines.doctor.command.doctor_command", broken)
    with pytest.raises(ValueError, match="a bug of ours"):
        cli.main(["doctor"])


def test_a_user_error_found_by_a_ray_worker_is_as_clear(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray.exceptions import RayTaskError

    cause = CheckpointError("model.safetensors: cut short; copy it again")
    wrapped = RayTaskError("predict", "Traceback of a worker", cause).as_instanceof_cause()
    assert isinstance(wrapped, CheckpointError), "Ray derives a class of both"

    def broken(_: object) -> int:
        raise wrapped

    monkeypatch.setattr("pipelines.doctor.command.doctor_command", broken)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "error: model.safetensors: cut short; copy it again\n"


def test_messages_show_brackets_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> int:
        raise ConfigError("images[3]: [bold]; " + "long " * 60)

    monkeypatch.setattr("pipelines.doctor.command.doctor_command", broken)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "error: images[3]: [bold]; " + "long " * 60 + "\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_unwinds_and_gives_the_code_of_its_signal(number: int, code: int) -> None:
    script = """
        import sys, time
        from pipelines.cli.main import main
        from pipelines.doctor import command
        def wait(_):
            try:
                print("ready", flush=True)
                time.sleep(60)
            finally:
                print("cleaned", flush=True)
        command.doctor_command = wait
        sys.exit(main(["doctor"]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "cleaned\n")
    assert "Traceback" not in errors


def test_the_console_script_is_this_module() -> None:
    script = Path(sys.executable).with_name("sparse-detr")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.stdout == _run("--version").stdout
