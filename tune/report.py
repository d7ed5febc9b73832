"""Results of a sweep: one row a trial, the best, and the errors of those that broke."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray.tune

from pipelines.tracking.tracker import Tracker
from sparse_detr.storage.location import Location

REPORT_FILE = "sweep.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One trial."""

    id: str
    """Tune's name for it, also that of its folder."""
    params: Mapping[str, float]
    """`keep_ratio` and `encoder_auxiliary_weight`."""
    metrics: Mapping[str, float]
    """Metrics of its last epoch; empty where it broke before the first was complete."""
    model: str | None = None
    """Path or URI of its model folder; None where it broke."""
    error: str | None = None
    """Why it broke; None where it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """All trials of a sweep."""

    trials: tuple[TrialResult, ...]
    """By falling AP; the broken ones last."""

    @property
    def best(self) -> TrialResult | None:
        """The trial with the highest AP; None where all broke."""
        return self.trials[0] if self.trials and self.trials[0].error is None else None


def collect(results: ray.tune.ResultGrid) -> SweepResult:
    """Ray Tune's results as ours."""
    return SweepResult(trials=tuple(sorted((_trial(results[index]) for index in range(len(results))), key=_rank)))


def _trial(result: Any) -> TrialResult:
    reported: Mapping[str, Any] = result.metrics or {}
    metrics = {name: float(value) for name, value in reported.items() if _is_ours(name, value)}
    error = _first_cause(result.error) if result.error is not None else None
    model = reported.get("model") if error is None else None
    trial_id = reported.get("trial_id") or str(result.path).rstrip("/").rpartition("/")[2]
    return TrialResult(
        id=str(trial_id), params=dict(result.config["params"]), metrics=metrics, model=model, error=error
    )


_TUNES_OWN = ("timestamp", "done", "training_iteration", "pid", "iterations_since_restore", "checkpoint_dir_name")


def _is_ours(name: str, value: object) -> bool:
    """Tune adds numbers of its own to what a trial reports."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and name not in _TUNES_OWN and not name.startswith("time_") and "/" not in name


def _rank(trial: TrialResult) -> tuple[bool, float]:
    return trial.error is not None, -trial.metrics.get("ap", -1.0)


def _first_cause(error: BaseException) -> str:
    """The innermost line of Ray's wrapped error: what was wrong, without the tracebacks of the way."""
    cause = getattr(error, "cause", None) or error.__cause__ or error
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__


def rows(trials: Sequence[TrialResult]) -> list[dict[str, str]]:
    """The comparison as text, one dict a trial."""
    return [
        {
            "trial": trial.id,
            "keep ratio": f"{trial.params['keep_ratio']:g}",
            "encoder auxiliary weight": f"{trial.params['encoder_auxiliary_weight']:g}",
            "AP": f"{trial.metrics['ap']:.3f}" if "ap" in trial.metrics else "",
            "AP50": f"{trial.metrics['ap50']:.3f}" if "ap50" in trial.metrics else "",
            "error": trial.error or "",
        }
        for trial in trials
    ]


def write_report(result: SweepResult, output: Location, tracker: Tracker) -> None:
    """Write the comparison to `sweep.json` and its best numbers to MLflow."""
    record = {"trials": [asdict(trial) for trial in result.trials], "best": result.best.id if result.best else None}
    output.child(REPORT_FILE).write_bytes(json.dumps(record, indent=1).encode())
    if result.best is not None:
        tracker.params({f"best.{name}": value for name, value in result.best.params.items()})
        tracker.metrics({f"best_{name}": result.best.metrics[name] for name in ("ap", "ap50")}, 0)
    tracker.metrics({"broken_trials": float(sum(trial.error is not None for trial in result.trials))}, 0)
