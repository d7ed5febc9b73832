"""Any verb, sent to a running Ray cluster as a Ray Job: code and environment travel along, logs come back.

Ray asks for a token (Ray 2.60 turns token authentication on by itself). It is read from RAY_AUTH_TOKEN,
RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, in this order.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.submit.config import ADDRESS_VARIABLE, SubmitConfig
from sparse_detr.errors import ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("sparse_detr", "pipelines", "tune")
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_CONNECT_SECONDS = 10.0


def connect(address: str) -> JobSubmissionClient:
    """A client of the cluster's job API.

    Raises:
        ConfigError: nothing answers at the address within 10 seconds, the token is missing or refused, or the
            cluster's Ray is too old.
    """
    _require_listener(address)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        # RAY_ADDRESS and RAY_API_SERVER_ADDRESS would win over the argument.
        with _environment({ADDRESS_VARIABLE: address}):
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ConfigError(
            f"address: {address} refuses the token; put the cluster's token into RAY_AUTH_TOKEN, or its path into "
            "RAY_AUTH_TOKEN_PATH (`ray get-auth-token` prints it on the cluster's head)"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"address: {address} is no Ray job API: {error}") from error


def submit(config: SubmitConfig) -> tuple[JobSubmissionClient, str]:
    """Send `sparse-detr COMMAND` to the cluster; returns the client and the job's id.

    Raises:
        ConfigError: no verb is given, or the cluster cannot be reached, or refuses the job.
    """
    if not config.command:
        raise ConfigError(
            "submit: no command; write it behind two dashes: sparse-detr submit --address URL -- train tiny"
        )
    client = connect(config.resolved())
    try:
        job = client.submit_job(
            # -P: a checkout in the folder where the cluster was started must not win over the code that travels.
            entrypoint=shlex.join([config.python, "-P", "-m", "pipelines.cli", *config.command]),
            submission_id=config.id,
            runtime_env=runtime_env(config, os.environ),
            metadata={"sparse_detr.command": config.command[0]},
            entrypoint_num_cpus=config.cpus or None,
        )
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"submit: the cluster refused the job: {error}") from error
    return client, job


def runtime_env(config: SubmitConfig, environment: Mapping[str, str]) -> dict[str, Any]:
    """What travels with the job: our packages as they are installed here, chosen variables, the user's folder."""
    values: dict[str, Any] = {
        "py_modules": [str(package_folder(name)) for name in PACKAGES],
        "env_vars": travelling(config.environment, environment),
        "excludes": ["**/__pycache__/"],
    }
    if config.working_dir is not None:
        values["working_dir"] = str(config.working_dir)
    if config.requirements is not None:
        values["pip"] = str(config.requirements)
    return values


def travelling(patterns: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables whose names fit one of the patterns."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def package_folder(name: str) -> Path:
    """The folder that a package is imported from."""
    spec = find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise ConfigError(f"{name}: not importable here; install sparse-detr before submitting it")
    return Path(locations[0])


def _require_listener(address: str) -> None:
    """A refused or silent address is an error within seconds; Ray's own client would wait without end."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"address: nothing answers at {address} ({error}); is the cluster up and its dashboard port reachable "
            "from here?"
        ) from error


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
