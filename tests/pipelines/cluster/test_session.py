"""A local Ray ends with its session and listens on the loopback alone; a process that is connected stays so."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipelines.cluster.connection import unreachable
from pipelines.cluster.session import RaySession, available_cpus, prepare_environment, ray_session
from pipelines.services.process import free_ports

VARIABLE = "SPARSE_DETR_TEST_MARK"


def _marked(mark: str) -> list[Path]:
    wanted = f"{VARIABLE}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(entry)
        except OSError:
            continue
    return found


def _listening(processes: list[Path]) -> set[str]:
    """Addresses (as the kernel writes them) that the processes listen on."""
    sockets = set()
    for process in processes:
        try:
            sockets |= {os.readlink(handle) for handle in (process / "fd").iterdir()}
        except OSError:
            continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


@pytest.mark.slow
def test_a_local_ray_listens_on_the_loopback_alone_and_ends() -> None:
    script = """
        import dataclasses, json, sys
        import ray  # imported first, as the modules of training and sweeps do
        from pipelines.cluster.session import ray_session
        with ray_session(logical_cpus=3) as session:
            import ray
            @ray.remote
            def answer(): return 42
            print(json.dumps(dataclasses.asdict(session) | {"answer": ray.get(answer.remote())}), flush=True)
            sys.stdin.read()
    """
    mark = secrets.token_hex(8)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=clean | {VARIABLE: mark},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        addresses = _listening(_marked(mark))
    assert (said["answer"], said["cpus"], said["local"]) == (42, 3, True)
    assert said["dashboard"].startswith("http://127.0.0.1:")
    assert addresses, "the test must see Ray's sockets"
    # 127.0.0.1 and, for sockets of IPv6 that take IPv4 too, ::ffff:127.0.0.1.
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert process.returncode == 0
    deadline = time.monotonic() + 30
    while left := _marked(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.slow
def test_a_connected_process_keeps_its_connection(ray_cluster: RaySession) -> None:
    import ray

    with ray_session() as session:
        assert session.address == ray_cluster.address
        assert not session.local
    assert ray.is_initialized()


@pytest.mark.slow
def test_a_session_over_ray_client(ray_cluster: RaySession) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ray.util.client.server", "--host=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen([*command, f"--address={ray_cluster.address}"], stderr=subprocess.DEVNULL)
    script = (
        "from pipelines.cluster.session import ray_session\nwith ray_session() as session: print(session.describe())"
    )
    try:
        for _ in range(100):
            if not unreachable(f"ray://127.0.0.1:{port}", 1.0):
                break
            time.sleep(0.2)
        environment = os.environ | {"RAY_ADDRESS": f"ray://127.0.0.1:{port}"}
        client = [sys.executable, "-c", script]
        done = subprocess.run(client, env=environment, capture_output=True, text=True, timeout=120)
    finally:
        server.terminate()
        server.wait()
    assert done.stdout.startswith(f"Ray at {ray_cluster.address}: 4 CPUs"), done.stderr


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    prepare_environment()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ, "a real cluster needs real addresses"
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_workers_of_a_local_ray_talk_over_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    prepare_environment()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    prepare_environment()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("250000 100000\n", 2), ("50000 100000\n", 1), ("9900000 100000\n", 6), ("max 100000\n", 6), ("", 6), (None, 6)],
)
def test_no_more_cpus_than_the_container_gets(
    content: str | None, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    quota = tmp_path / "cpu.max"
    if content is not None:
        quota.write_text(content)
    assert available_cpus(quota) == cpus
