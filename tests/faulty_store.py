"""A proxy before an S3 server that fails, by chance and by plan, as stores do."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

FAULTS = ("503", "500", "429", "cut", "late")
"""Answers of a busy store; a connection that is cut after half of the answer; an answer that comes seconds late."""

_REASONS = {"503": "Slow Down", "500": "Internal Server Error", "429": "Too Many Requests"}
_CODES = {"503": "SlowDown", "500": "InternalError", "429": "TooManyRequests"}


@dataclass
class FaultyStore:
    """What the proxy does to requests from now on."""

    upstream: tuple[str, int]
    endpoint: str = ""
    rate: float = 0.0
    """Share of the requests that fail."""
    delay: float = 5.0
    """Seconds of an answer that is late."""
    away: bool = False
    """Cut every connection at once."""
    stale: bool = False
    """Answer every listing as when it was last asked for, as a store or a cache that is behind does."""
    listings: dict[bytes, bytes] = field(default_factory=dict)
    """Last answer to each request for a listing."""
    requests: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    first: str | None = None
    """The fault of the first request for each object, whatever the rate."""
    asked: set[bytes] = field(default_factory=set)

    def fault(self, head: bytes) -> str | None:
        """The fault of the next request, by the first line of its head."""
        self.requests += 1
        target = head.split(b" ")[1].partition(b"?")[0]
        kind = "away" if self.away else self.chance.choice(FAULTS) if self.chance.random() < self.rate else None
        if kind is None and target not in self.asked:
            kind = self.first
        self.asked.add(target)
        if kind is not None:
            self.failed[kind] = self.failed.get(kind, 0) + 1
        return kind


@contextmanager
def faulty_store(endpoint: str) -> Iterator[FaultyStore]:
    """Run the proxy; clients sign for its address, and requests pass through it byte for byte."""
    parts = urlsplit(endpoint)
    store = FaultyStore(upstream=(str(parts.hostname), int(parts.port or 80)))
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    store.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_serve, args=(store, client), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield store
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _serve(store: FaultyStore, client: socket.socket) -> None:
    with (
        client,
        suppress(OSError, EOFError, ValueError),  # a client that goes in the middle of a request
        client.makefile("rb") as reader,
        socket.create_connection(store.upstream) as server,
        server.makefile("rb") as answers,
    ):
        while True:
            head = _head(reader)
            fault = store.fault(head)
            if fault == "away":
                return
            listing = head.partition(b"\r\n")[0] if b"list-type=2" in head.partition(b"\r\n")[0] else None
            if listing is not None and store.stale and listing in store.listings:
                client.sendall(store.listings[listing])
                continue
            if fault in _REASONS:
                _refuse(client, fault, head)
                return
            _send_message(reader, server, head)
            if fault == "late":
                time.sleep(store.delay)
            answer = _head(answers)
            without_body = head.startswith(b"HEAD") or answer[9:12] in (b"204", b"304")
            if answer[9:12] == b"100":
                client.sendall(answer)
                answer = _head(answers)
            if fault == "cut":
                client.sendall(answer[: len(answer) // 2])
                return
            client.sendall(answer)
            if listing is not None:
                kept = _Kept(client)
                _copy_body(answers, kept, answer)
                store.listings[listing] = answer + kept.data
            elif not without_body:
                _copy_body(answers, client, answer)


@dataclass
class _Kept:
    """A connection, and what is sent through it."""

    client: socket.socket
    data: bytes = b""

    def sendall(self, data: bytes) -> None:
        self.data += data
        self.client.sendall(data)


def _refuse(client: socket.socket, fault: str, head: bytes) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{_CODES[fault]}</Code><Message>try later</Message></Error>".encode()
    body = b"" if head.startswith(b"HEAD") else body
    status = f"HTTP/1.1 {fault} {_REASONS[fault]}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    client.sendall(f"{status}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    # The rest of the request is read, so that closing does not reset the connection before the answer is.
    client.settimeout(0.2)
    with suppress(OSError):
        while client.recv(65536):
            pass


def _send_message(reader: object, server: socket.socket, head: bytes) -> None:
    server.sendall(head)
    _copy_body(reader, server, head)


def _head(stream: object) -> bytes:
    lines = []
    while True:
        line = stream.readline()  # type: ignore[attr-defined]
        if not line:
            raise EOFError
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)


def _copy_body(source: object, target: socket.socket | _Kept, head: bytes) -> None:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
    fields = {name.strip().lower(): value.strip() for name, _, value in lines}
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        while True:
            size = source.readline()  # type: ignore[attr-defined]
            target.sendall(size)
            length = int(size.split(b";")[0], 16)
            if length == 0:
                while (line := source.readline()) != b"\r\n":  # type: ignore[attr-defined]
                    target.sendall(line)
                target.sendall(b"\r\n")
                return
            target.sendall(source.read(length + 2))  # type: ignore[attr-defined]
    rest = int(fields.get(b"content-length", b"0"))
    while rest:
        data = source.read(min(rest, 65536))  # type: ignore[attr-defined]
        if not data:
            raise EOFError
        target.sendall(data)
        rest -= len(data)
