"""Options of `sparse-detr submit`, and of the commands about a job."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import tyro

from sparse_detr.errors import ConfigError, require

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Address of the cluster."""

    address: str = ""
    """URL of the cluster's dashboard, such as http://head:8265; unset takes RAY_API_SERVER_ADDRESS."""

    def resolved(self) -> str:
        """The address, from here or from the environment."""
        address = self.address or os.environ.get(ADDRESS_VARIABLE, "")
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise ConfigError(
                f"address: {address!r}; give the URL of the cluster's dashboard, such as http://head:8265, "
                f"or set {ADDRESS_VARIABLE}"
            )
        return address.rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitConfig(ClusterConfig):
    """Options of a command's travel to a cluster."""

    id: str | None = None
    """Submission id of the job; unset lets Ray choose one."""
    environment: tuple[str, ...] = ("AWS_*", "MLFLOW_*", "PYICEBERG_*")
    """Names (with * and ?) of the environment variables that travel along; the one word `none` sends none, where the
    cluster has its own credentials. Secrets among them are not shown by the dashboard, the job API or a log; paths and
    profiles of this machine (AWS_PROFILE, AWS_CA_BUNDLE and their like) stay here."""
    working_dir: Path | None = None
    """Folder that travels along and that the command runs in, for the files that its options name."""
    requirements: Path | None = None
    """requirements.txt that the cluster installs first, where its machines lack our dependencies."""
    cpus: float = 0.0
    """CPUs to reserve for the command's own process (its workers reserve theirs themselves)."""
    python: str = "python"
    """The Python of the cluster's machines that has Ray and our dependencies, as their shell finds it."""
    detach: bool = False
    """Return once the job is accepted, without following its logs."""

    command: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The words behind the two dashes: a command of `sparse-detr` with its options."""

    def __post_init__(self) -> None:
        if not self.environment:
            raise ConfigError("environment: no names; give some, such as AWS_*, or the word none")
        require(0 <= self.cpus < math.inf, f"cpus: {self.cpus}; give a finite number of at least 0")
        for name in ("working_dir", "requirements"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                raise ConfigError(f"{name}: {path} does not exist")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig(ClusterConfig):
    """One job of a cluster."""

    id: str
    """The job's id, as submit printed it."""
