"""Entry of the command line, and its exit codes.

0 done; 1 something is wrong with what was examined, a job failed, or no space is left; 2 a user error, in one message;
75 not all was done, and the same command goes on; 130 Ctrl-C, 143 SIGTERM; 141 whoever read the output has gone.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from rich.console import Console
from rich.markup import escape

from pipelines.cli import streams
from pipelines.cli.commands import COMMANDS
from pipelines.cli.dispatch import dispatch
from pipelines.cli.interruption import Interrupted
from sparse_detr.errors import IncompleteError

_TRY_AGAIN = 75
"""`EX_TEMPFAIL` of sysexits.h: a scheduler that knows it runs the command again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        try:
            return _run(arguments)
        finally:
            streams.flush()
    except (OSError, SystemExit) as error:
        code = streams.exit_code(error)
        if code is None:
            raise
        return code


def _run(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _print_version() if words[:1] == ["--version"] else dispatch("sparse-detr", COMMANDS, words)
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, Interrupted) else Interrupted()
        Console(stderr=True).print(f"\n{escape(str(stop))}", highlight=False, soft_wrap=True)
        return stop.exit_code
    except Exception as error:
        from pipelines.cluster.user_errors import find

        found = find(error)
        if found is None:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(found))}", highlight=False, soft_wrap=True)
        return _TRY_AGAIN if isinstance(found, IncompleteError) else 2
    finally:
        signal.signal(signal.SIGTERM, previous)


def _print_version() -> int:
    from importlib.metadata import version

    Console().print(f"sparse-detr {version('sparse-detr')}", highlight=False)
    return 0


def _terminate(number: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that servers and cluster stop."""
    raise Interrupted(number=number)
