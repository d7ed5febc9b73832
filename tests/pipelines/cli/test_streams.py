"""A reader that goes early and a full disk end a command without a traceback, also while the interpreter exits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipelines.cli import streams

COMMANDS = [("--help",), ("train", "tiny", "--help"), ("doctor", "--json"), ("--version",)]


def _run(words: tuple[str, ...], stdout: int, unbuffered: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pipelines.cli", *words]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_is_a_quiet_end(words: tuple[str, ...], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert _run(words, writer, unbuffered) == (141, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_sentence(words: tuple[str, ...], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        assert _run(words, full.fileno(), unbuffered) == (1, "error: no space left for the output; free some\n")


def test_other_errors_are_not_taken_for_a_stream_of_the_terminal() -> None:
    assert streams.exit_code(BrokenPipeError("of a socket")) is None
    assert streams.exit_code(FileNotFoundError("of ours")) is None
    assert streams.exit_code(SystemExit(2)) is None
