"""Connections of Ray, MLflow and the object store: to where, and whether something answers there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.cluster.connection import REMEDY, unreachable, without_password
from sparse_detr.redaction import without_secrets

State = Literal["ok", "note", "broken"]


_SECONDS = 5.0
"""For each address: the doctor looks at three and should answer while one waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's table."""

    group: str
    name: str
    value: str
    state: State = "ok"
    remedy: str = ""
    """Remedy; empty where nothing is to be done."""


def connections(env: Mapping[str, str]) -> list[Finding]:
    """Findings about what the environment points to; each address is tried for 5 seconds at most."""
    return [_ray(env), _ray_token(env), _mlflow(env), *_store(env)]


def _ray(env: Mapping[str, str]) -> Finding:
    group, name, address = "connection", "ray", env.get("RAY_ADDRESS", "")
    if not address:
        return Finding(group=group, name=name, value="a local Ray, started for each run (RAY_ADDRESS is not set)")
    if address in ("auto", "local"):
        return Finding(group=group, name=name, value=f"RAY_ADDRESS={address}")
    shown = without_password(address)
    if problem := unreachable(address if "://" in address else f"ray://{address}", _SECONDS):
        return Finding(group=group, name=name, value=f"{shown}: {problem}", state="broken", remedy=REMEDY)
    return Finding(group=group, name=name, value=f"{shown} answers")


def _ray_token(env: Mapping[str, str]) -> Finding:
    group, name = "connection", "ray token"
    if env.get("RAY_AUTH_MODE") == "disabled":
        remedy = "whoever reaches the job API may run code there: unset RAY_AUTH_MODE"
        return Finding(group=group, name=name, value="authentication is switched off", state="note", remedy=remedy)
    if env.get("RAY_AUTH_TOKEN"):
        return Finding(group=group, name=name, value="from RAY_AUTH_TOKEN")
    path = Path(env.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if path.is_file():
        return Finding(group=group, name=name, value=f"from {path}")
    if env.get("RAY_AUTH_TOKEN_PATH"):
        remedy = "correct RAY_AUTH_TOKEN_PATH, or unset it"
        return Finding(group=group, name=name, value=f"{path} is absent", state="broken", remedy=remedy)
    return Finding(group=group, name=name, value=f"none yet; a local Ray creates {path}", state="note")


def _mlflow(env: Mapping[str, str]) -> Finding:
    group, name, uri = "connection", "mlflow", env.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        value = "nothing is recorded unless a command is told where (MLFLOW_TRACKING_URI is not set); demo uses sqlite"
        return Finding(group=group, name=name, value=value, state="note")
    if uri.startswith(("file:", "/", "./")):
        remedy = "MLflow 3 refuses folders: use sqlite:////absolute/mlflow.db or the URL of a server"
        return Finding(group=group, name=name, value=without_secrets(uri), state="broken", remedy=remedy)
    if uri.startswith(("http://", "https://")):
        problem = unreachable(uri, _SECONDS)
        if problem:
            remedy = "start the server (infra/README.md) or correct MLFLOW_TRACKING_URI"
            value = f"{without_secrets(uri)}: {problem}"
            return Finding(group=group, name=name, value=value, state="broken", remedy=remedy)
    return Finding(group=group, name=name, value=without_secrets(uri))


def _store(env: Mapping[str, str]) -> list[Finding]:
    group = "connection"
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL", "")
    key, secret = env.get("AWS_ACCESS_KEY_ID", ""), env.get("AWS_SECRET_ACCESS_KEY", "")
    if not endpoint:
        first = Finding(group=group, name="object store", value="AWS S3 (AWS_ENDPOINT_URL is not set)")
    elif problem := unreachable(endpoint, _SECONDS):
        value = f"{without_secrets(endpoint)}: {problem}"
        remedy = "start the store or correct AWS_ENDPOINT_URL"
        first = Finding(group=group, name="object store", value=value, state="broken", remedy=remedy)
    else:
        first = Finding(group=group, name="object store", value=f"{without_secrets(endpoint)} answers")
    if key and secret:
        second = Finding(group=group, name="credentials", value=f"access key {masked(key)}, secret key is set")
    elif key or secret:
        missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        second = Finding(
            group=group, name="credentials", value=f"{missing} is not set", state="broken", remedy=f"set {missing} too"
        )
    else:
        value = "none in the environment; s3:// works only where the machine has a role"
        second = Finding(group=group, name="credentials", value=value, state="note")
    return [first, second]


def masked(secret: str) -> str:
    """The first characters of a long secret, to recognise it by; nothing of a short one."""
    return f"{secret[:4]}..." if len(secret) >= 12 else "***"
