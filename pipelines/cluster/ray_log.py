"""A file for what Ray's C++ parts say: the terminal belongs to the user.

What workers print is in Ray's own log folder (`RaySession.logs`); this is about messages of the process itself, which
go to the error stream past Python and past every setting of its loggers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def native_errors_to(log: Path) -> Iterator[None]:
    """Send what is written to the error stream past Python to a file; what Python writes there still shows."""
    sys.stderr.flush()
    shown, python = os.dup(2), sys.stderr
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 2)
    encoding, errors = getattr(python, "encoding", None), getattr(python, "errors", None)
    with os.fdopen(os.dup(shown), "w", buffering=1, encoding=encoding, errors=errors) as visible:
        # A stream that is not the descriptor, as of a notebook, keeps its own way.
        sys.stderr = visible if _is_descriptor(python) else python
        try:
            yield
        finally:
            sys.stderr = python
            os.dup2(shown, 2)
            os.close(shown)


def _is_descriptor(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):
        return False


@contextmanager
def kept_aside(say: Callable[[str], None]) -> Iterator[None]:
    """The same, into a new file of the system's temporary folder, which is named at the end if anything is in it."""
    descriptor, name = tempfile.mkstemp(prefix="sparse-detr-ray-", suffix=".log")
    os.close(descriptor)
    log = Path(name)
    try:
        with native_errors_to(log):
            yield
    finally:
        if log.stat().st_size:
            say(f"Ray's messages: {log}")
        else:
            log.unlink()
