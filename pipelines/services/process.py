"""Starts a server process on free loopback ports, waits until it answers, and ends it on every way out."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.services import supervisor
from sparse_detr.errors import ConfigError, StorageError

HOST = "127.0.0.1"


_ATTEMPTS = 4
"""Starts on other ports: a free port may be taken between the look and the start, hardly ever four times in a row."""


_LOG_TAIL = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Description of a server to run."""

    name: str
    """For messages."""
    log: Path
    """Takes the server's output; begun anew at every start."""
    ports: int
    """Number of ports it listens on."""
    command: Callable[[Sequence[int]], Sequence[str]]
    """The command line for given ports."""
    ready: Callable[[Sequence[int]], bool]
    """Whether the server at these ports answers."""
    seconds: float
    """Seconds that its start may take."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Added to the environment of this process."""


@contextmanager
def running(server: Server) -> Iterator[Sequence[int]]:
    """Run a server for the length of the block; gives its ports.

    Raises:
        StorageError: it does not come up; the message holds the end of its log.
    """
    for attempt in range(_ATTEMPTS):
        ports = free_ports(server.ports)
        process = _start(server, ports)
        try:
            if _becomes_ready(server, process, ports):
                yield ports
                return
        finally:
            _stop(process)
        text = server.log.read_text(errors="replace")
        # A port that was free a moment ago is taken: choose others. Repeating does not help with anything else.
        if "address already in use" not in text.lower() or attempt == _ATTEMPTS - 1:
            tail = "\n".join(text.splitlines()[-_LOG_TAIL:])
            raise StorageError(
                f"{server.name} did not start in {server.seconds:.0f} s; the end of {server.log}:\n{tail}"
            )


def free_ports(count: int) -> list[int]:
    """Different loopback ports that nothing listens on now. Another process may still take one before its use."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def healthy(port: int, path: str) -> bool:
    """Whether a GET of this path gives status 200."""
    return answer(port, path) is not None


def answer(port: int, path: str) -> bytes | None:
    """The body that a GET of this path gives with status 200, else None. No proxy of the environment is asked."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.read() if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _start(server: Server, ports: Sequence[int]) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-I", "-S", str(Path(supervisor.__file__).resolve())]
    with server.log.open("wb") as log:
        return subprocess.Popen(
            [*program, *server.command(ports)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **server.environment},
        )


def _becomes_ready(server: Server, process: subprocess.Popen[bytes], ports: Sequence[int]) -> bool:
    deadline = time.monotonic() + server.seconds
    while time.monotonic() < deadline and process.poll() is None:
        if server.ready(ports):
            return True
        time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(supervisor.GRACE + 10)
    except subprocess.TimeoutExpired:
        # The kernel then signals the server itself.
        process.kill()
        process.wait()


def executable(name: str, remedy: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if found is None:
        raise ConfigError(f"{name}: this program is not installed; {remedy}")
    return found
