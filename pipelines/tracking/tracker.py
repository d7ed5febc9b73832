"""Face of a tracker: one run that is written to, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Writes one run and never stops the work that it records."""

    uri: str
    """Tracking URI of the run; with `run_id` all that another process needs."""
    run_id: str | None
    """None where nothing is recorded."""
    failures: dict[str, int]
    """Calls that failed, by kind."""

    def child(self, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Tracker:
        """A run nested under this one, in the same experiment; found again by its key, as after a restart."""

    def params(self, params: Mapping[str, Any]) -> None:
        """Write parameters, flat; what looks like a secret is hidden."""

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one point of every curve. NaN and infinity are skipped and counted."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Write tags; an earlier value is replaced."""

    def text(self, text: str, name: str) -> None:
        """Write a text file among the artifacts, without secrets."""

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a local file, or all of a local folder, to the artifacts, below `folder`."""

    def model(self, folder: str | Path) -> None:
        """Copy a model folder, local or in a store, to the artifact folder `model`."""

    def finish(self, status: str = "FINISHED") -> None:
        """Write what is left and end the run with FINISHED, FAILED or KILLED."""


class NullTracker:
    """Records nothing."""

    uri = "none"
    run_id: str | None = None

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}

    def child(self, name: str, *, key: str | None = None, tags: Mapping[str, str] | None = None) -> Tracker:
        """Another one that records nothing."""
        return NullTracker()

    def params(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def text(self, text: str, name: str) -> None:
        """Nothing."""

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Nothing."""

    def model(self, folder: str | Path) -> None:
        """Nothing."""

    def finish(self, status: str = "FINISHED") -> None:
        """Nothing."""
