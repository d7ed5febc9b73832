"""Commands sent to a Ray cluster of the test's own: its port, token, folder and processes are no other Ray's."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.cluster.sealed import open_sealed
from pipelines.services.process import free_ports
from pipelines.submit.config import ClusterConfig, SubmitConfig
from pipelines.submit.run import connect, require_command, runtime_env, submit, travelling
from sparse_detr.errors import ConfigError
from sparse_detr.redaction import is_secret


@dataclass(frozen=True)
class Cluster:
    address: str
    environment: dict[str, str]
    folder: Path

    def cli(self, *args: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", *args]
        return subprocess.run(
            command, env=self.environment | extra, capture_output=True, text=True, timeout=240, cwd=self.folder
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Under /tmp: the paths of Ray's sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="sd-ray-", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port", "metrics-export-port",
             "dashboard-agent-grpc-port", "runtime-env-agent-port")  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MLFLOW_"))
    }
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2",
               "--dashboard-host=127.0.0.1", f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"]  # fmt: skip
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        _wait_for(address, environment, process, folder / "log")
        yield Cluster(address=address, environment=environment, folder=folder)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str, environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    probe = "from ray.job_submission import JobSubmissionClient as C; import sys; C(sys.argv[1]).list_jobs()"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        done = subprocess.run([sys.executable, "-c", probe, address], env=environment, capture_output=True, timeout=60)
        if done.returncode == 0:
            return
        time.sleep(0.5)
    pytest.fail(f"ray start --head did not come up:\n{log.read_text()}")


@pytest.mark.slow
def test_a_command_runs_on_the_cluster_with_our_code_and_environment(cluster: Cluster) -> None:
    secret = secrets.token_hex(16)
    done = cluster.cli(
        *("submit", "--address", cluster.address, "--id", "one", "--", "doctor", "--json"),
        AWS_ACCESS_KEY_ID="AKIATESTTESTTEST",
        AWS_SECRET_ACCESS_KEY=secret,
        # Ray's own client lets this variable win over the address that it is given.
        RAY_ADDRESS="10.255.255.1:6379",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {row["name"]: row for row in json.loads(done.stdout[done.stdout.index("[\n") :])}
    # The packages came with the job: they are not the ones that this test imports.
    assert str(cluster.folder) in findings["sparse-detr"]["value"]
    assert "AKIA..." in findings["credentials"]["value"]
    assert secret not in done.stdout + done.stderr
    assert "SUCCEEDED" in done.stderr
    status = cluster.cli("submit", "status", "one", "--address", cluster.address)
    assert (status.returncode, status.stdout.strip()) == (0, "SUCCEEDED")
    again = cluster.cli("submit", "logs", "one", "--address", cluster.address)
    assert again.stdout == done.stdout
    _require_nowhere(secret, cluster)
    twice = cluster.cli("submit", "--address", cluster.address, "--id", "one", "--", "doctor")
    assert (twice.returncode, "id: 'one'" in twice.stderr) == (2, True), twice.stderr


def _require_nowhere(secret: str, cluster: Cluster) -> None:
    """The secret is in neither the job API's answers nor any file of the cluster's folder, packages included."""
    probe = "from ray.job_submission import JobSubmissionClient as C; import sys; print(C(sys.argv[1]).list_jobs())"
    shown = subprocess.run(
        [sys.executable, "-c", probe, cluster.address],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "SPARSE_DETR_PAD" in shown.stdout, shown.stderr
    assert secret not in shown.stdout
    files = [path for path in (cluster.folder / "ray").rglob("*") if path.is_file()]
    assert any("runtime_env_agent" in path.name for path in files)
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_the_exit_code_of_a_failed_command_comes_back(cluster: Cluster) -> None:
    done = cluster.cli("submit", "--address", cluster.address, "--", "data", "check", "--annotations", "/none.json",
                       "--images", "/none")  # fmt: skip
    assert done.returncode == 2
    assert "/none.json" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_ctrl_c_detaches_and_stop_ends_the_job(cluster: Cluster) -> None:
    target = cluster.folder / "shapes"
    command = [sys.executable, "-m", "pipelines.cli", "submit", "--address", cluster.address, "--id", "long", "--",
               "data", "shapes", "--output", str(target), "--train", "1000000"]  # fmt: skip
    process = subprocess.Popen(
        command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cluster.folder
    )
    deadline = time.monotonic() + 120
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert target.exists(), "the job did not start"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "sparse-detr submit stop long" in errors
    assert "sparse-detr submit logs long" in errors
    status = cluster.cli("submit", "status", "long", "--address", cluster.address)
    assert (status.returncode, status.stdout.strip()) == (0, "RUNNING")
    assert cluster.cli("submit", "stop", "long", "--address", cluster.address).returncode == 0
    while (status := cluster.cli("submit", "status", "long", "--address", cluster.address)).stdout.strip() == "RUNNING":
        assert time.monotonic() < deadline + 60, "the job did not stop"
    assert (status.returncode, status.stdout.strip()) == (130, "STOPPED")


@pytest.mark.slow
def test_a_wrong_token_is_refused_with_the_remedy(cluster: Cluster) -> None:
    wrong = cluster.folder / "wrong"
    wrong.write_text(secrets.token_hex(32))
    done = cluster.cli("submit", "--address", cluster.address, "--", "doctor", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_unknown_job_is_named(cluster: Cluster) -> None:
    done = cluster.cli("submit", "status", "nobody", "--address", cluster.address)
    assert done.returncode == 2
    assert "nobody" in done.stderr


def test_nothing_at_the_address_is_an_error_within_seconds() -> None:
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=f"nothing answers at http://127.0.0.1:{port}"):
        connect(f"http://127.0.0.1:{port}")
    assert time.monotonic() - started < 15


def test_something_else_at_the_address_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                with pytest.raises(ConfigError, match="is no Ray job API"):
                    connect(f"http://127.0.0.1:{port}")
                break
            except AssertionError:
                time.sleep(0.1)
        else:
            pytest.fail("the server was never recognised")
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("address", ["", "head:8265", "ray://head:10001", "http://"])
def test_an_address_that_is_no_url_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"address: .*http://head:8265"):
        ClusterConfig(address=address).resolved()


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert ClusterConfig().resolved() == "http://head:8265"


def test_only_chosen_variables_travel() -> None:
    environment = {"AWS_REGION": "r", "MLFLOW_TRACKING_URI": "u", "HOME": "/root", "MY_AWS_KEY": "no"}
    assert travelling(("AWS_*", "MLFLOW_*"), environment) == {"AWS_REGION": "r", "MLFLOW_TRACKING_URI": "u"}
    assert travelling((), environment) == {}


def test_the_three_packages_travel(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n")
    config = SubmitConfig(working_dir=tmp_path, requirements=tmp_path / "requirements.txt")
    values = runtime_env(config, {"AWS_REGION": "r"}, tmp_path)
    assert [Path(path).name for path in values["py_modules"]] == ["sparse_detr", "pipelines", "tune"]
    assert all((Path(path) / "__init__.py").is_file() for path in values["py_modules"])
    assert values["working_dir"] == str(tmp_path)
    assert values["env_vars"] == {"AWS_REGION": "r"}


def test_a_folder_that_is_absent_is_refused() -> None:
    with pytest.raises(ConfigError, match="working_dir: /nowhere does not exist"):
        SubmitConfig(working_dir=Path("/nowhere"))


def test_secrets_travel_in_two_halves_that_show_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = {"AWS_SECRET_ACCESS_KEY": "planted-secret", "MLFLOW_TRACKING_URI": "http://me:planted-secret@host"}
    values = runtime_env(SubmitConfig(), secret | {"AWS_REGION": "r"}, tmp_path)
    pad = values["env_vars"].pop("SPARSE_DETR_PAD")
    assert values["env_vars"] == {"AWS_REGION": "r"}
    package = Path(values["py_modules"][-1])
    assert b"planted" not in b"".join(path.read_bytes() for path in package.iterdir()) + bytes.fromhex(pad)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SPARSE_DETR_PAD", pad)
    for name in secret:
        monkeypatch.setenv(name, "")
    open_sealed()
    assert {name: os.environ[name] for name in secret} == secret
    assert "SPARSE_DETR_PAD" not in os.environ


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN"])
def test_names_that_bear_secrets(name: str) -> None:
    assert is_secret(name, "x")
    assert not is_secret("AWS_ENDPOINT_URL", "http://host:9000")


def test_what_only_this_machine_can_use_stays_here() -> None:
    names = ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE")
    assert travelling(("AWS_*",), dict.fromkeys(names, "/here")) == {}


@pytest.mark.parametrize("words", [("trian", "tiny"), ("data", "chekc"), ("data", "--chekc")])
def test_a_misspelt_command_is_refused_here(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="no such command"):
        require_command(words)


@pytest.mark.parametrize(
    "words", [("train", "tiny"), ("data", "--help"), ("data", "check", "--images", "x"), ("submit", "--address", "x")]
)
def test_our_commands_pass(words: tuple[str, ...]) -> None:
    require_command(words)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("http://me:hush-hush@host:5000", r"http://\*\*\*@host"),
        ("https://host/w.pth?X-Amz-Signature=deadbeef", r"X-Amz-Signature=\*\*\*"),
        ("--tracking-uri=http://me:hush-hush@host", r"http://\*\*\*@host"),
    ],
)
def test_a_secret_among_the_words_is_refused_before_anything_is_sent(word: str, shown: str) -> None:
    with pytest.raises(ConfigError, match=shown) as found:
        submit(SubmitConfig(address="http://127.0.0.1:1", command=("train", "tiny", "--tracking-uri", word)))
    assert "hush-hush" not in str(found.value)
    assert "deadbeef" not in str(found.value)


def test_an_environment_without_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="environment: no names"):
        SubmitConfig(environment=())
    assert travelling(SubmitConfig(environment=("none",)).environment, {"AWS_REGION": "r"}) == {}


@pytest.mark.parametrize("cpus", [-1.0, math.inf, math.nan])
def test_cpus_that_are_no_number_to_reserve_are_refused(cpus: float) -> None:
    with pytest.raises(ConfigError, match=f"cpus: {cpus}"):
        SubmitConfig(cpus=cpus)
