"""Images that end or hang the process that decodes them, found one by one in a process of its own.

A block of images whose worker died is looked at here before it is done again. The trial process decodes one image
after the other; when it dies or is silent for too long, the image it had is the one, and another process goes on.
"""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO

from pipelines.detect.images import ImageFailure
from pipelines.detect.trial_decode import DIGITS
from sparse_detr.deadline import within

_START_SECONDS = 60.0
"""Longest start of the trial process, on a machine that is busy."""


def find_killers(images: Iterable[tuple[int, bytes]], seconds: float) -> dict[int, ImageFailure]:
    """Failures of the images that no process survives, by index.

    Args:
        images: index and file of each.
        seconds: longest decoding of one.
    """
    found: dict[int, ImageFailure] = {}
    trial: _Trial | None = None
    try:
        for index, data in images:
            trial = trial or _Trial()
            outcome = trial.decode(data, seconds)
            if outcome is None:
                continue
            trial.end()
            trial = None
            if outcome is not NOBODY_S_FAULT:
                found[index] = outcome
    except (OSError, TimeoutError):
        # No process can be started here: no image is to blame for that.
        return found
    finally:
        if trial is not None:
            trial.end()
    return found


NOBODY_S_FAULT = ImageFailure(
    stage="decode", type="KilledError", message="killed from outside, as when memory is short"
)
"""The trial process was killed by SIGKILL, which no decoder sends."""


class _Trial:
    """A process that decodes what it is given."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.detect.trial_decode"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        # Its start is not the image's fault, however long it takes on a busy machine.
        assert self._process.stdout is not None
        if not within(_START_SECONDS, functools.partial(self._process.stdout.read, 1)):
            self.end()
            raise OSError("the trial process does not start")

    def decode(self, data: bytes, seconds: float) -> ImageFailure | None:
        """None if the process lives on."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        sink, source = process.stdin, process.stdout

        def exchange() -> bytes:
            try:
                _send(sink, data)
                return source.read(1)
            except OSError:
                return b""

        try:
            answer = within(seconds, exchange)
        except TimeoutError:
            return ImageFailure(
                stage="decode",
                type="TimeoutError",
                message=f"decoding did not end in {seconds:g} s; replace the image or take it out",
            )
        if answer:
            return None
        code = process.wait()
        if code == -signal.SIGKILL:
            return NOBODY_S_FAULT
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return ImageFailure(
            stage="decode",
            type="ProcessDiedError",
            message=f"decoding ended its process ({how}); replace the image or take it out",
        )

    def end(self) -> None:
        """Kill the process; it holds nothing of worth."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            # What was not sent yet cannot be flushed any more.
            with suppress(OSError):
                if stream is not None:
                    stream.close()


def _send(sink: IO[bytes], data: bytes) -> None:
    sink.write(f"{len(data):0{DIGITS}d}".encode())
    sink.write(data)
    sink.flush()
