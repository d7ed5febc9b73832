"""Streams of the terminal that fail: a reader that has gone, as `head` does, or a full disk."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from contextlib import suppress

from rich.console import Console

PIPE_CLOSED = 128 + signal.SIGPIPE
"""Exit code of a program that its reader ended, as shells give it."""


def flush() -> None:
    """Write out what is left; at the interpreter's exit an error would be a traceback."""
    if sys.stdout is not None:
        sys.stdout.flush()


def exit_code(error: BaseException) -> int | None:
    """Exit code where a stream of the terminal ended the command, a full disk being said; None for other errors."""
    # rich catches a broken pipe itself, and leaves by SystemExit.
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(cause, BrokenPipeError) and (cause is not error or _reader_is_gone()):
        _discard_rest()
        return PIPE_CLOSED
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        _discard_rest()
        with suppress(OSError):
            Console(stderr=True).print("[bold red]error:[/] no space left for the output; free some", highlight=False)
        return 1
    return None


def _reader_is_gone() -> bool:
    """Whether it is one of the terminal's pipes that broke: a socket's reader may go too, which is no quiet end."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_rest() -> None:
    """Point stdout to nowhere if it is what failed: the interpreter writes out what is left of it at its exit."""
    try:
        flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
