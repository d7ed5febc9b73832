"""A RAY_ADDRESS that leads to no Ray is one message within seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
from ray.exceptions import AuthenticationError

from pipelines.cluster.connection import REMEDY, join, unreachable
from pipelines.cluster.session import ray_session
from pipelines.services.process import free_ports
from sparse_detr.errors import ConfigError


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:{closed}", "ray://127.0.0.1:{closed}", "ray://nohost.invalid:10001", "ray://nohost.invalid"]
)
def test_nothing_at_the_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (closed,) = free_ports(1)
    shown = address.format(closed=closed)
    monkeypatch.setenv("RAY_ADDRESS", shown)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.monotonic()
    with pytest.raises(ConfigError) as found, ray_session():
        pass
    assert time.monotonic() - started < 15
    assert str(found.value).startswith(f"RAY_ADDRESS: {shown}: nothing answers (")
    assert str(found.value).endswith(REMEDY)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_something_else_at_the_address(address: str, silent: int) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match="no Ray answers at this port"):
        join(address.format(port=silent))
    assert time.monotonic() - started < 15


def test_a_name_server_that_is_silent_does_not_hold_us_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(5))
    started = time.monotonic()
    assert unreachable("ray://head:10001", 0.2) == "nothing answers (no answer in 0 s)"
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("address", ["ray://foo:hush@127.0.0.1:{closed}", "foo:hush@127.0.0.1:{closed}",
                                     "http://foo:hush@127.0.0.1:8265"])  # fmt: skip
def test_no_message_shows_a_password(address: str) -> None:
    (closed,) = free_ports(1)
    with pytest.raises(ConfigError, match=r"\*\*\*@127\.0\.0\.1") as found:
        join(address.format(closed=closed))
    assert "hush" not in str(found.value)


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "refuses the token; .*RAY_AUTH_TOKEN_PATH"),
        (grpc.StatusCode.UNIMPLEMENTED, "no Ray answers at this port"),
    ],
    ids=str,
)
def test_a_wrong_token_or_port_of_ray_is_found_at_once(address: str, code: grpc.StatusCode, message: str) -> None:
    class Refusal(grpc.ServerInterceptor):  # type: ignore[misc]
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(code, "no"))

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, interceptors=[Refusal()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        started = time.monotonic()
        with pytest.raises(ConfigError, match=message):
            join(address.format(port=port))
        assert time.monotonic() - started < 3
        server.stop(None)


@pytest.mark.parametrize("address", ["nonsense", "foo://bar", "http://head:8265"])
def test_an_address_of_no_known_form(address: str) -> None:
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS: {address}: ") as found:
        join(address)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Could not find any running Ray instance."),
            ": Could not find any running Ray instance; start",
        ),
        (RuntimeError("Version mismatch:\n    Ray: 2.0.0"), ": Version mismatch: Ray: 2.0.0; start"),
        (AuthenticationError("the token is wrong"), " refuses the token; put the cluster's token into RAY_AUTH_TOKEN"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ray_refuses_is_a_user_error(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigError) as found:
        join("auto")
    assert str(found.value).startswith(f"RAY_ADDRESS: auto{message}")


def test_the_command_line_has_no_traceback(quick_run_words: list[str]) -> None:
    command = [sys.executable, "-m", "pipelines.cli", *quick_run_words]
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1", "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "error: RAY_ADDRESS: 127.0.0.1:1: nothing answers" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def quick_run_words(shapes_folder: Path, tmp_path: Path) -> list[str]:
    words = ["train", "tiny", "--output", str(tmp_path / "run")]
    for part in ("train", "val"):
        words += [f"--data.{part}-annotations", str(shapes_folder / f"{part}.json")]
        words += [f"--data.{part}-images", str(shapes_folder / part)]
    return words


@pytest.mark.parametrize(("failures", "tries"), [(1, 2), (2, 2)])
def test_a_client_whose_process_was_slow_to_start_is_tried_once_more(
    failures: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def init(*_: Any, address: str, **__: Any) -> None:
        calls.append(address)
        if len(calls) <= failures:
            raise ConnectionError("Initialization failure from server: Starting Ray client server failed. See the log")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("pipelines.cluster.connection._require_ray", lambda _: None)
    if failures < tries:
        join("ray://head:10001")
    else:
        with pytest.raises(ConfigError, match="Starting Ray client server failed"):
            join("ray://head:10001")
    assert calls == ["ray://head:10001"] * tries
