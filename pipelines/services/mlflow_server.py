"""A local MLflow server over sqlite."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.services.process import HOST, Server, healthy, running
from sparse_detr.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMlflow:
    """A running MLflow server."""

    uri: str
    """The tracking URI, http://127.0.0.1:port"""


@contextmanager
def local_mlflow(
    data_dir: Path, artifacts_uri: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[LocalMlflow]:
    """Run an MLflow server on a sqlite store in `data_dir`; clients reach artifacts through it.

    Args:
        data_dir: folder of mlflow.db, the log, and the artifacts unless they go elsewhere.
        artifacts_uri: where the server keeps artifacts, for example s3://bucket/mlflow.
        environment: added to the server's environment: the AWS variables of its artifact store.

    Raises:
        ConfigError: the MLflow server is not installed.
        StorageError: it does not come up; the message holds the end of its log.
    """
    if importlib.util.find_spec("flask") is None:
        raise ConfigError("mlflow: its server is not installed; pip install 'sparse-detr[server]'")
    data_dir.mkdir(parents=True, exist_ok=True)
    artifacts = artifacts_uri or str((data_dir / "artifacts").absolute())
    extra = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}

    server = Server(
        name="MLflow",
        log=data_dir / "mlflow.log",
        ports=1,
        command=lambda ports: _mlflow_command(data_dir, artifacts, ports[0]),
        ready=lambda ports: healthy(ports[0], "/health"),
        # The first start creates the database: 12 s on an idle machine, half a minute on a busy one.
        seconds=180,
        environment=extra,
    )
    with running(server) as ports:
        yield LocalMlflow(uri=f"http://{HOST}:{ports[0]}")


def _mlflow_command(data_dir: Path, artifacts: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{(data_dir / 'mlflow.db').absolute()}"),
        *("--artifacts-destination", artifacts),
    ]
