"""The MLflow run of a training, a sweep or a trial: opened with its parameters, closed with how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import field_values
from pipelines.tracking.mlflow_store import (
    OPEN_SECONDS,
    artifacts_beside,
    connect,
    create_run,
    experiment_id,
    resolved_uri,
)
from pipelines.tracking.mlflow_tracker import MlflowTracker, warn
from pipelines.tracking.provenance import provenance_tags
from pipelines.tracking.tracker import NullTracker, Tracker
from sparse_detr.config_dict import to_dict
from sparse_detr.deadline import within
from sparse_detr.redaction import values_without_secrets


def continue_run(uri: str, run_id: str) -> Tracker | None:
    """The run of that id, running again; None where this store says that it has none.

    Where it does not answer, the run is written to all the same, as soon as it does.
    """
    client = connect(uri)

    def opened() -> Tracker:
        client.get_run(run_id)
        client.update_run(run_id, status="RUNNING")
        return MlflowTracker(uri, run_id, client, resumed=True)

    try:
        return within(OPEN_SECONDS, opened)
    except Exception as error:
        warn(uri, "continue", error)
        gone = getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
        return None if gone else MlflowTracker(uri, run_id, client, resumed=True)


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
        warn(uri, "open", error)
        return NullTracker()


@contextmanager
def open_tracker(
    config: RunConfig,
    *,
    parent_run_id: str | None = None,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Tracker]:
    """A new run with the config as its parameters, or the run of `run_id` again where this store has it; see
    `closing`."""
    uri = resolved_uri(config.tracking_uri)
    tracker = continue_run(uri, run_id) if run_id is not None and uri != "none" else None
    if tracker is None:
        tracker = open_run(uri, config.experiment, config.name, parent_run_id=parent_run_id, tags=tags)
        tracker.params(field_values(to_dict(config)))
        tracker.text(json.dumps(values_without_secrets(to_dict(config)), indent=1), "config.json")
    # Of a run that goes on too: the code that ends it is what it is judged by.
    tracker.tags(provenance_tags())
    with closing(tracker):
        yield tracker


@contextmanager
def closing(tracker: Tracker) -> Iterator[Tracker]:
    """End the run as FINISHED, as KILLED after Ctrl-C, as FAILED after any other exception."""
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def child_of(parent: tuple[str, str] | None, name: str, key: str) -> Tracker:
    """The run nested under (tracking URI, run id) that bears `key`, found again after a restart; without a parent
    nothing is recorded."""
    if parent is None:
        return NullTracker()
    uri, run_id = parent
    return MlflowTracker.attach(uri, run_id).child(name, key=key)


def address(tracker: Tracker) -> tuple[str, str] | None:
    """Address by which another process writes to the same run; None where nothing is recorded."""
    return (tracker.uri, tracker.run_id) if tracker.run_id is not None else None
