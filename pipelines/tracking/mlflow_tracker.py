"""Tracker over MLflow's client: it writes one run, and never stops the work that it records.

Every call is bounded in time. A call that fails is counted and, the first time of its kind, logged as a warning.
Metrics that could not be written are kept and go out with the next ones, so a server that was away for a while
leaves no hole in the curves. There is no active run of the process: any process may write to a run by its id.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.tracking.metric_buffer import MetricBuffer
from pipelines.tracking.mlflow_store import (
    KEY_TAG,
    VALUE_LIMIT,
    as_keys,
    as_tags,
    connect,
    create_run,
    cut,
    find_child,
    key_mark,
)
from pipelines.tracking.model_package import log_model
from pipelines.tracking.provenance import DataUse
from pipelines.tracking.tracker import NullTracker, Registration, Tracker
from sparse_detr.deadline import within
from sparse_detr.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_SECONDS, FILES_SECONDS = 30.0, 300.0
"""Longest call with numbers, and with files."""
PAUSE_SECONDS = 30.0
"""After a failure, metrics are only collected for so long before the server is tried again."""

END_SECONDS, KILLED_SECONDS = 60.0, 5.0
"""For which the end of a run waits for a server that is away: at most, and after Ctrl-C."""
_RETRY_SECONDS = 2.0

_PARAMS_A_CALL = 100
"""MLflow's own limit of a batch."""


class MlflowTracker:
    """Writes one MLflow run."""

    def __init__(self, uri: str, run_id: str, client: MlflowClient, *, resumed: bool = False) -> None:
        self.uri = uri
        """Tracking URI of the run; with `run_id` all that another process needs."""
        self.run_id: str | None = run_id
        self._id = run_id
        self.failures: dict[str, int] = {}
        """Calls that failed, by kind."""
        self._client = client
        self._buffer = MetricBuffer(run_id, resumed=resumed)
        self._paused_until = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(uri={without_secrets(self.uri)!r}, run_id={self.run_id!r})"

    @classmethod
    def attach(cls, uri: str, run_id: str, *, resumed: bool = False) -> MlflowTracker:
        """Write to a run that exists, from any process. Asks the server nothing.

        Args:
            uri: tracking URI of the run.
            run_id: of the run.
            resumed: what the run's curves have already is not written again; see `MetricBuffer`.
        """
        return cls(uri, run_id, connect(uri), resumed=resumed)

    @property
    def skipped(self) -> int:
        """Metrics that were NaN or infinite and so not written."""
        return self._buffer.not_finite

    def child(self, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Tracker:
        """A run nested under this one, in the same experiment.

        Args:
            key: finds the child again that was opened with the same key, as after a restart.
        """

        def opened(client: MlflowClient) -> Tracker:
            experiment = client.get_run(self._id).info.experiment_id
            found = find_child(client, experiment, self._id, key) if key else None
            if found is not None:
                return MlflowTracker(self.uri, found, client, resumed=True)
            own = {KEY_TAG: key_mark(key)} if key else {}
            return MlflowTracker(
                self.uri, create_run(client, experiment, name, self._id, {**(tags or {}), **own}), client
            )

        return self._attempt("child", opened, CALL_SECONDS) or NullTracker()

    def params(self, params: Mapping[str, Any]) -> None:
        """Write parameters, flat. What is too long is cut, what looks like a secret is hidden.

        MLflow never changes a parameter: those that the run has already are left as they are.
        """
        keys = as_keys(params)
        wanted = {keys[name]: cut(without_secrets(str(value), name), VALUE_LIMIT) for name, value in params.items()}

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
        self._buffer.add(metrics, step)
        if time.monotonic() >= self._paused_until:
            self._flush()

    def tags(self, tags: Mapping[str, str], *, seconds: float | None = None) -> None:
        """Write tags, in so many seconds at most; an earlier value is replaced."""
        entries = as_tags(tags)

        def write(client: MlflowClient) -> None:
            from mlflow.entities import RunTag

            client.log_batch(self._id, tags=[RunTag(key, value) for key, value in entries.items()])

        self._attempt("tags", write, CALL_SECONDS if seconds is None else seconds)

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

    def model(self, folder: str | Path, registration: Registration | None = None) -> str | None:
        """Log a model folder, local or in a store, as the run's model in `model`, of MLflow's kind `python_function`.

        Returns:
            `models:/name/version` where it was registered.
        """

        late = threading.Event()
        self.tags({"sparse_detr.model": str(folder)})
        found = self._attempt(
            "model", lambda client: log_model(client, self._id, folder, registration, late), FILES_SECONDS
        )
        late.set()
        return found

    def datasets(self, used: Sequence[DataUse]) -> None:
        """Write them as inputs of the run, by name and digest."""

        def write(client: MlflowClient) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            inputs = [
                DatasetInput(
                    # MLflow takes at most 36 characters.
                    Dataset(one.name, one.digest[:32], "uri", json.dumps({"uri": without_secrets(one.source)}),
                            profile=json.dumps({"images": one.images, "boxes": one.boxes})),
                    [InputTag("mlflow.data.context", one.name)],
                )
                for one in used
            ]  # fmt: skip
            client.log_inputs(self._id, inputs)

        self._attempt("datasets", write, CALL_SECONDS)

    def settle(self, seconds: float = END_SECONDS) -> int:
        """Write what is left, and wait for a server that is away for at most so long.

        Returns:
            Points that could not be written.
        """
        self._until(seconds, self._flush)
        return len(self._buffer) + self._buffer.lost

    def finish(self, status: str = "FINISHED") -> None:
        """Write what is left and end the run with FINISHED, FAILED or KILLED; what is missing then is told."""
        deadline = time.monotonic() + (KILLED_SECONDS if status == "KILLED" else END_SECONDS)
        left = self.settle(deadline - time.monotonic())
        counts = {
            "skipped_metrics": self.skipped, "failed_calls": sum(self.failures.values()), "unwritten_metrics": left,
        }  # fmt: skip
        if any(counts.values()):
            tags = {f"sparse_detr.{name}": str(count) for name, count in counts.items() if count}
            self.tags(tags, seconds=min(CALL_SECONDS, max(1.0, deadline - time.monotonic())))
        ended = self._until(deadline - time.monotonic(), lambda left: self._terminate(status, left))
        if left or not ended:
            what = f"{left} points of its curves are missing" if left else f"it is not marked as {status}"
            logger.warning("MLflow at %s: did not answer; run %s: %s", without_secrets(self.uri), self._id, what)

    def _terminate(self, status: str, seconds: float) -> bool:
        def work(client: MlflowClient) -> bool:
            client.set_terminated(self._id, status)
            return True

        return bool(self._attempt("finish", work, seconds))

    def _until(self, seconds: float, work: Callable[[float], bool]) -> bool:
        """Try until it succeeds, or no time is left for another time; `work` is told its longest time, in seconds."""
        deadline = time.monotonic() + seconds
        while not (done := work(min(CALL_SECONDS, max(1.0, deadline - time.monotonic())))):
            if time.monotonic() + _RETRY_SECONDS >= deadline:
                break
            time.sleep(_RETRY_SECONDS)
        return done

    def _flush(self, seconds: float | None = None) -> bool:
        seconds = CALL_SECONDS if seconds is None else seconds
        if not len(self._buffer) or self._attempt("metrics", self._buffer.write, seconds):
            return True
        self._paused_until = time.monotonic() + PAUSE_SECONDS
        return False

    def _attempt(self, kind: str, work: Callable[[MlflowClient], T], seconds: float) -> T | None:
        try:
            return within(seconds, lambda: work(self._client))
        except Exception as error:  # Whatever it is, what we record is worth more than the record.
            self.failures[kind] = self.failures.get(kind, 0) + 1
            if self.failures[kind] == 1:
                warn(self.uri, kind, error)
            return None


def warn(uri: str, kind: str, error: Exception) -> None:
    """Tell of a call that failed."""
    text = without_secrets(" ".join(str(error).split()))
    logger.warning(
        "MLflow at %s: %s failed (%s: %s); the work goes on, further failures of this kind are only counted",
        *(without_secrets(uri), kind, type(error).__name__, cut(text, 500)),
    )
