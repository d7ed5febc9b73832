"""Tracker over MLflow's client: it writes one run, and never stops the work that it records.

Every call is bounded in time. A call that fails is counted and, the first time of its kind, logged as a warning.
Metrics that could not be written are kept and go out with the next ones, so a server that was away for a while
leaves no hole in the curves. There is no active run of the process: any process may write to a run by its id.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.tracking.mlflow_store import (
    KEY_TAG,
    VALUE_LIMIT,
    artifacts_beside,
    as_key,
    as_tags,
    connect,
    create_run,
    cut,
    experiment_id,
    find_child,
    key_mark,
)
from pipelines.tracking.tracker import NullTracker, Tracker
from sparse_detr.deadline import within
from sparse_detr.redaction import without_secrets
from sparse_detr.storage.location import locate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_SECONDS, FILES_SECONDS, OPEN_SECONDS = 30.0, 300.0, 180.0
"""Longest call with numbers, with files, and to open a run (a new database is created in 10 to 40 s)."""
PAUSE_SECONDS = 30.0
"""After a failure, metrics are only collected for so long before the server is tried again."""

_METRICS_A_CALL, _PARAMS_A_CALL, _PENDING_LIMIT = 1000, 100, 50_000
"""The first two are MLflow's own limits of a batch; the third keeps days without a server in some megabytes."""


class MlflowTracker:
    """Writes one MLflow run."""

    def __init__(self, uri: str, run_id: str, client: MlflowClient) -> None:
        self.uri = uri
        """Tracking URI of the run; with `run_id` all that another process needs."""
        self.run_id: str | None = run_id
        self._id = run_id
        self.failures: dict[str, int] = {}
        """Calls that failed, by kind."""
        self.skipped = 0
        """Metrics that were NaN or infinite and so not written."""
        self._client = client
        self._pending: list[Metric] = []
        self._paused_until = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(uri={without_secrets(self.uri)!r}, run_id={self.run_id!r})"

    @classmethod
    def attach(cls, uri: str, run_id: str) -> MlflowTracker:
        """Write to a run that exists, from any process. Asks the server nothing."""
        return cls(uri, run_id, connect(uri))

    def child(self, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Tracker:
        """A run nested under this one, in the same experiment.

        Args:
            key: finds the child again that was opened with the same key, as after a restart.
        """

        def opened(client: MlflowClient) -> Tracker:
            experiment = client.get_run(self._id).info.experiment_id
            found = find_child(client, experiment, self._id, key) if key else None
            if found is None:
                own = {KEY_TAG: key_mark(key)} if key else {}
                found = create_run(client, experiment, name, self._id, {**(tags or {}), **own})
            return MlflowTracker(self.uri, found, client)

        return self._attempt("child", opened, CALL_SECONDS) or NullTracker()

    def params(self, params: Mapping[str, Any]) -> None:
        """Write parameters, flat. What is too long is cut, what looks like a secret is hidden.

        MLflow never changes a parameter: those that the run has already are left as they are.
        """
        wanted = {as_key(name): cut(without_secrets(str(value), name), VALUE_LIMIT) for name, value in params.items()}

        def write(client: MlflowClient) -> None:
            from mlflow.entities import Param

            known = client.get_run(self._id).data.params
            new = [Param(key, value) for key, value in wanted.items() if key not in known]
            for start in range(0, len(new), _PARAMS_A_CALL):
                client.log_batch(self._id, params=new[start : start + _PARAMS_A_CALL])
            changed = [key for key, value in wanted.items() if known.get(key, value) != value]
            if changed:
                logger.warning("run %s keeps the earlier values of the parameters %s", self._id, ", ".join(changed))

        self._attempt("params", write, CALL_SECONDS)

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one point of every curve, in one call. NaN and infinity are skipped and counted."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = {as_key(name): float(value) for name, value in metrics.items()}
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        self.skipped += len(numbers) - len(finite)
        self._pending += [Metric(key, value, now, step) for key, value in finite.items()]
        del self._pending[:-_PENDING_LIMIT]
        if time.monotonic() >= self._paused_until:
            self._flush()

    def tags(self, tags: Mapping[str, str]) -> None:
        """Write tags; an earlier value is replaced."""
        entries = as_tags(tags)

        def write(client: MlflowClient) -> None:
            from mlflow.entities import RunTag

            client.log_batch(self._id, tags=[RunTag(key, value) for key, value in entries.items()])

        self._attempt("tags", write, CALL_SECONDS)

    def text(self, text: str, name: str) -> None:
        """Write a text file among the artifacts, without secrets."""
        self._attempt("text", lambda c: c.log_text(self._id, without_secrets(text), name), FILES_SECONDS)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a local file, or all of a local folder, to the artifacts, below `folder`; not searched for secrets."""

        def write(client: MlflowClient) -> None:
            if Path(path).is_dir():
                client.log_artifacts(self._id, str(path), folder)
            else:
                client.log_artifact(self._id, str(path), folder)

        self._attempt("artifact", write, FILES_SECONDS)

    def model(self, folder: str | Path) -> None:
        """Copy a model folder, local or in a store, to the artifact folder `model`, and tag the run with its URI."""

        def write(client: MlflowClient) -> None:
            with tempfile.TemporaryDirectory() as copy:
                locate(folder).download_to(Path(copy))
                client.log_artifacts(self._id, copy, "model")

        self.tags({"sparse_detr.model": str(folder)})
        self._attempt("model", write, FILES_SECONDS)

    def finish(self, status: str = "FINISHED") -> None:
        """Write what is left and end the run with FINISHED, FAILED or KILLED."""
        self._flush()
        counts = {"skipped_metrics": self.skipped, "failed_calls": sum(self.failures.values())}
        if any(counts.values()):
            self.tags({f"sparse_detr.{name}": str(count) for name, count in counts.items()})
        self._attempt("finish", lambda c: c.set_terminated(self._id, status), CALL_SECONDS)

    def _flush(self) -> None:
        batch = list(self._pending)
        if not batch:
            return

        def write(client: MlflowClient) -> bool:
            for start in range(0, len(batch), _METRICS_A_CALL):
                client.log_batch(self._id, metrics=batch[start : start + _METRICS_A_CALL])
            return True

        if self._attempt("metrics", write, CALL_SECONDS):
            del self._pending[: len(batch)]
        else:
            self._paused_until = time.monotonic() + PAUSE_SECONDS

    def _attempt(self, kind: str, work: Callable[[MlflowClient], T], seconds: float) -> T | None:
        try:
            return within(seconds, lambda: work(self._client))
        except Exception as error:  # Whatever it is, what we record is worth more than the record.
            self.failures[kind] = self.failures.get(kind, 0) + 1
            if self.failures[kind] == 1:
                _warn(self.uri, kind, error)
            return None


def resolved_uri(uri: str | None) -> str:
    """The tracking URI that is meant: the one given, or MLFLOW_TRACKING_URI's, or `none`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or "none"


def continue_run(uri: str, run_id: str) -> Tracker | None:
    """The run of that id, running again; None where this store has no such run, or does not answer."""
    client = connect(uri)

    def opened() -> Tracker:
        client.get_run(run_id)
        client.update_run(run_id, status="RUNNING")
        return MlflowTracker(uri, run_id, client)

    try:
        return within(OPEN_SECONDS, opened)
    except Exception as error:
        _warn(uri, "continue", error)
        return None


def open_run(
    uri: str | None,
    experiment: str,
    name: str,
    *,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts_uri: str | None = None,
) -> Tracker:
    """Open a new run. Where the store does not answer, a warning is logged and nothing is recorded.

    Args:
        uri: sqlite:///path.db, http://host:port and the like; `none` records nothing; None takes
            MLFLOW_TRACKING_URI, or records nothing without it.
        experiment: created where it is new.
        name: of the run.
        parent_run_id: run to nest this one under.
        artifacts_uri: where a new experiment keeps artifacts; by default the server's choice, and the folder
            `artifacts` beside a sqlite file.

    Raises:
        ConfigError: the URI is of a kind that MLflow refuses.
    """
    uri = resolved_uri(uri)
    if uri == "none":
        return NullTracker()
    client = connect(uri)
    root = artifacts_uri or artifacts_beside(uri)

    def opened() -> Tracker:
        home = experiment_id(client, experiment, root)
        return MlflowTracker(uri, create_run(client, home, name, parent_run_id, tags or {}), client)

    try:
        return within(OPEN_SECONDS, opened)
    except Exception as error:
        _warn(uri, "open", error)
        return NullTracker()


def _warn(uri: str, kind: str, error: Exception) -> None:
    text = without_secrets(" ".join(str(error).split()))
    logger.warning(
        "MLflow at %s: %s failed (%s: %s); the work goes on, further failures of this kind are only counted",
        *(without_secrets(uri), kind, type(error).__name__, cut(text, 500)),
    )
