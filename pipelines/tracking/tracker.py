"""Face of a tracker: one run that is written to, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipelines.tracking.provenance import DataUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A model's place in MLflow's registry."""

    name: str
    """Of the registered model."""
    alias: str
    """Moves to this version, unless the one that bears it has a higher AP on the same data."""
    ap: float | None
    """On the validation data."""
    data: str
    """Digest of the validation data."""


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

    def model(self, folder: str | Path, registration: Registration | None = None) -> str | None:
        """Log a model folder as the run's model, and register it; the `models:/` URI of the version, if any."""

    def datasets(self, used: Sequence[DataUse]) -> None:
        """Note the data sets that the run reads."""

    def settle(self, seconds: float = 60.0) -> int:
        """Write what is left, waiting for a server that is away for so long; the number of points that remain."""

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

    def model(self, folder: str | Path, registration: Registration | None = None) -> str | None:
        """Nothing."""
        return None

    def datasets(self, used: Sequence[DataUse]) -> None:
        """Nothing."""

    def settle(self, seconds: float = 60.0) -> int:
        """Nothing is left."""
        return 0

    def finish(self, status: str = "FINISHED") -> None:
        """Nothing."""
