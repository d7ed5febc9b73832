"""MLflow's stores for Tracker: a client, experiments, runs, and names and values as MLflow takes them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipes.paths import absolute_tracking_uri
from sparse_detr.errors import ConfigError
from sparse_detr.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_LIMIT, VALUE_LIMIT, TAG_LIMIT = 250, 6000, 8000
"""Longest key, parameter and tag that MLflow takes."""
_MARK = 8
KEY_TAG = "sparse_detr.key"
"""Tag by which a child run is found again."""

OPEN_SECONDS = 180.0
"""Longest call that may be a store's first: a new database is created in 10 to 40 s."""

_STORES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
_NO_KEY_CHARACTER = re.compile(r"[^\w\-. :/]")
_ENVIRONMENT = {
    # Read at every call. A server that is away must not hold up training: by default MLflow tries 8 times, for
    # 2 minutes each.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # The terminal is the user's.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Read when mlflow is imported, so it is imported here and late.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def resolved_uri(uri: str | None) -> str:
    """The tracking URI that is meant: the one given, or MLFLOW_TRACKING_URI's, or `none`; of a sqlite file with its
    whole path, so that it means the same in every process."""
    return absolute_tracking_uri(uri or os.environ.get("MLFLOW_TRACKING_URI") or "none")


def connect(uri: str) -> MlflowClient:
    """A client; a sqlite file gets its folder. Raises ConfigError for a URI of a kind that MLflow refuses."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _STORES or "://" not in uri:
        shown = without_secrets(uri)
        raise ConfigError(
            f"tracking_uri: {shown!r} is no MLflow store; give sqlite:///path.db, http://host:port or none"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)


def experiment_id(client: MlflowClient, name: str, artifacts_uri: str | None) -> str:
    """The id of an experiment, created where it is new with its artifacts at this URI."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts_uri)
        except MlflowException:
            # Another process was quicker.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def create_run(
    client: MlflowClient, experiment: str, name: str, parent_run_id: str | None, tags: Mapping[str, str]
) -> str:
    """The id of a new run."""
    nested = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
    run = client.create_run(experiment, tags={**as_tags(tags), **nested}, run_name=name)
    return str(run.info.run_id)


def find_child(client: MlflowClient, experiment: str, parent_run_id: str, key: str) -> str | None:
    """The id of the child run that was created with this key, running again; None where there is none."""
    wanted = f"tags.`mlflow.parentRunId` = '{parent_run_id}' and tags.`{KEY_TAG}` = '{key_mark(key)}'"
    runs = client.search_runs([experiment], wanted, max_results=1)
    if not runs:
        return None
    client.update_run(runs[0].info.run_id, status="RUNNING")
    return str(runs[0].info.run_id)


def key_mark(key: str) -> str:
    """The key as tag value: hashed, since MLflow's filters cannot hold every character."""
    return hashlib.sha256(key.encode()).hexdigest()


def artifacts_beside(uri: str) -> str | None:
    """The folder beside a sqlite file (MLflow's default is the working directory); None leaves it to the server."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "artifacts").as_uri()


def as_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags within MLflow's limits, without secrets."""
    return {as_key(name): cut(without_secrets(str(value), name), TAG_LIMIT) for name, value in tags.items()}


def as_key(name: str) -> str:
    """A name with characters and length as MLflow takes them, and no part of a path that it would leave out."""
    parts = _NO_KEY_CHARACTER.sub("_", name)[:KEY_LIMIT].split("/")
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)


def as_keys(names: Iterable[str]) -> dict[str, str]:
    """The key of each name; names that would share one get a mark of their own."""
    keys: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        key = as_key(name)
        if key in taken:
            key = f"{key[: KEY_LIMIT - _MARK - 1]}_{hashlib.sha256(name.encode()).hexdigest()[:_MARK]}"
        taken.add(key)
        keys[name] = key
    return keys


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
