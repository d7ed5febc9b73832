"""The doctor says what will be used and what is wrong, and never a secret."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cli import main as cli
from pipelines.doctor import run as doctor
from pipelines.doctor.connections import Finding, masked
from pipelines.doctor.run import examine, healthy
from sparse_detr.ops import deformable_attention as op
from sparse_detr.ops import self_check as self_test

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {f"{finding.group}/{finding.name}": finding for finding in findings}


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def listener() -> Any:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_sound_machine_is_healthy() -> None:
    findings = examine({})
    assert healthy(findings), [finding for finding in findings if finding.state == "broken"]
    found = _by_name(findings)
    assert found["package/torch"].value == torch.__version__
    assert op.backend() in found["machine/deformable attention"].value


def test_secrets_are_masked() -> None:
    port = _closed_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://user:{SECRET}@127.0.0.1:{port}",
        "MLFLOW_TRACKING_URI": f"http://user:{SECRET}@127.0.0.1:{port}",
        "RAY_ADDRESS": f"ray://user:{SECRET}@127.0.0.1:{port}",
        "RAY_AUTH_TOKEN": SECRET,
    }
    text = json.dumps(doctor.as_records(examine(environment)))
    text += json.dumps(doctor.as_records(examine({"RAY_ADDRESS": f"user:{SECRET}@127.0.0.1:{port}"})))
    assert SECRET not in text
    assert "AKIAIOSFODNN7EXAMPLE" not in text
    assert "AKIA..." in text
    assert text.count(f"***@127.0.0.1:{port}") == 4


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("RAY_ADDRESS", "127.0.0.1:{port}", "connection/ray"),
        ("RAY_ADDRESS", "ray://127.0.0.1:{port}", "connection/ray"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:{port}", "connection/mlflow"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:{port}", "connection/object store"),
    ],
)
def test_what_does_not_answer_is_broken_with_a_remedy(variable: str, value: str, name: str, listener: int) -> None:
    down = _by_name(examine({variable: value.format(port=_closed_port())}))[name]
    assert (down.state, bool(down.remedy)) == ("broken", True)
    up = _by_name(examine({variable: value.format(port=listener)}))[name]
    assert up.state == "ok"


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE"}, "connection/credentials"),
        ({"AWS_SECRET_ACCESS_KEY": SECRET}, "connection/credentials"),
        ({"MLFLOW_TRACKING_URI": "file:///tmp/mlruns"}, "connection/mlflow"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "connection/ray token"),
        ({"RAY_ADDRESS": "127.0.0.1:port"}, "connection/ray"),
    ],
)
def test_settings_that_cannot_work_are_broken(environment: dict[str, str], name: str) -> None:
    findings = examine(environment)
    assert _by_name(findings)[name].state == "broken"
    assert not healthy(findings)


def test_a_package_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def fake(name: str, package: str | None = None) -> Any:
        if name == "pycocotools.mask":
            raise ImportError("libsomething.so: wrong version")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", fake)
    finding = _by_name(examine({}))["package/pycocotools"]
    assert finding.state == "broken"
    assert "libsomething.so: wrong version" in finding.value
    assert "pip install" in finding.remedy


def test_an_op_with_wrong_results_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "largest_difference", lambda device, dtype: 0.25)
    finding = _by_name(examine({}))["machine/deformable attention"]
    assert finding.state == "broken"
    assert "differs from plain torch by 2.5e-01" in finding.value


def test_a_check_that_cannot_run_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(self_test, "largest_difference", fail)
    findings = examine({})
    assert any("no kernel image" in finding.value and finding.state == "broken" for finding in findings)
    assert "connection/credentials" in _by_name(findings)


def test_exit_code_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID",
                 "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN_PATH"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "ray", "mlflow-skinny", "pyarrow"} <= {row["name"] for row in rows}
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "broken" in out
    assert "RAY_AUTH_TOKEN_PATH" in out


def test_masking() -> None:
    assert masked("AKIAIOSFODNN7EXAMPLE") == "AKIA..."
    assert masked("short") == "***"


@pytest.mark.parametrize(("variable", "value"), [("SPARSE_DETR_OP", "fastest"), ("SPARSE_DETR_OP_ISA", "avx1024")])
def test_a_choice_of_kernels_that_is_none_is_a_finding(variable: str, value: str) -> None:
    code = "from pipelines.doctor.run import examine; print([f for f in examine({}) if f.state == 'broken'])"
    done = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, timeout=120, env={**os.environ, variable: value}
    )
    assert done.returncode == 0, done.stderr
    assert f"{variable}: {value!r}" in done.stdout.replace('"', "'").replace("\\'", "'")
