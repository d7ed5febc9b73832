"""The MLflow run of a training, a sweep or a trial: opened with its parameters, closed with how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import field_values
from pipelines.tracking.mlflow_tracker import MlflowTracker, continue_run, open_run, resolved_uri
from pipelines.tracking.tracker import NullTracker, Tracker
from sparse_detr.config_dict import to_dict


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
