"""Any command, sent to a running Ray cluster as a Ray Job: code and environment travel along, logs come back.

Ray asks for a token (Ray 2.60 turns token authentication on by itself). It is read from RAY_AUTH_TOKEN,
RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, in this order.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
import os
import shlex
import socket
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.cli.commands import COMMANDS, Group
from pipelines.cluster.sealed import PAD_VARIABLE, seal
from pipelines.submit.config import ADDRESS_VARIABLE, SubmitConfig
from sparse_detr.environment import environment
from sparse_detr.errors import ConfigError
from sparse_detr.redaction import is_secret, without_secrets

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("sparse_detr", "pipelines", "tune")
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_CONNECT_SECONDS = 10.0
"""A reachable head accepts within milliseconds; a firewall that drops packets would keep us for two minutes."""
_OF_THIS_MACHINE = ("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_DEFAULT_PROFILE",
                    "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE")  # fmt: skip
"""Paths here, and names in files here: on the cluster they would only hide its own."""


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
        with environment({ADDRESS_VARIABLE: address}):
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
        ConfigError: no command is given, it is none of ours, the id is taken, or the cluster cannot be reached or
            refuses the job.
    """
    if not config.command:
        raise ConfigError(
            "submit: no command; write it behind two dashes: sparse-detr submit --address URL -- train tiny"
        )
    require_command(config.command)
    _require_open(config.command)
    client = connect(config.resolved())
    _require_free_id(client, config.id)
    try:
        with tempfile.TemporaryDirectory() as folder:
            job = client.submit_job(
                # -P: a checkout in the folder where the cluster was started must not win over the code that travels.
                entrypoint=shlex.join([config.python, "-P", "-m", "pipelines.cli", *config.command]),
                submission_id=config.id,
                runtime_env=runtime_env(config, os.environ, Path(folder)),
                metadata={"sparse_detr.command": config.command[0]},
                entrypoint_num_cpus=config.cpus or None,
            )
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"submit: the cluster refused the job: {error}") from error
    return client, job


def _require_open(words: Sequence[str]) -> None:
    """Refuse a secret among the words: job API, dashboard and logs show a job's command in clear."""
    for word in words:
        shown = without_secrets(word)
        if shown != word:
            raise ConfigError(
                f"submit: {shown}: the words of a command show in the job API, so none may hold a secret; put it into "
                "a variable that travels (MLFLOW_TRACKING_URI, AWS_*), or into a file of the store"
            )


def require_command(words: Sequence[str]) -> None:
    """Refuse a command that the cluster would not find either."""
    entry: Any = COMMANDS
    for depth, word in enumerate(words):
        group = entry.commands if isinstance(entry, Group) else entry
        if word in ("-h", "--help"):
            return
        if word in group:
            entry = group[word]
        elif not isinstance(entry, Group) or entry.otherwise is None:
            near = difflib.get_close_matches(word, group, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(group)}"
            raise ConfigError(f"submit: {' '.join(words[: depth + 1])}: no such command; {hint}")
        else:
            return
        if not isinstance(entry, Group):
            return


def runtime_env(config: SubmitConfig, environment: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Runtime environment of the job: our packages as they are installed here, chosen variables, the user's folder.

    Args:
        folder: an empty folder for the package of secrets, to be kept until the job is accepted.
    """
    chosen = travelling(config.environment, environment)
    hidden = {name: value for name, value in chosen.items() if is_secret(name, value)}
    values: dict[str, Any] = {
        "py_modules": [str(package_folder(name)) for name in PACKAGES],
        "env_vars": {name: value for name, value in chosen.items() if name not in hidden},
        "excludes": ["**/__pycache__/"],
    }
    if hidden:
        package, pad = seal(hidden, folder)
        values["py_modules"].append(str(package))
        values["env_vars"][PAD_VARIABLE] = pad
    if config.working_dir is not None:
        values["working_dir"] = str(config.working_dir)
    if config.requirements is not None:
        values["pip"] = str(config.requirements)
    return values


def travelling(patterns: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables whose names fit one of the patterns, without those that mean something on this machine alone."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name not in _OF_THIS_MACHINE and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def package_folder(name: str) -> Path:
    """The folder that a package is imported from."""
    spec = find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise ConfigError(f"{name}: not importable here; install sparse-detr before submitting it")
    return Path(locations[0])


def _require_free_id(client: JobSubmissionClient, job: str | None) -> None:
    if job is None:
        return
    try:
        status = client.get_job_status(job).value
    except RuntimeError:
        return  # The cluster knows no such job.
    raise ConfigError(f"id: {job!r} is the id of a job of this cluster ({status}); give another one, or none")


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
