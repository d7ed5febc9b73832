"""What happened to a run beside training: its workers over time, and what every restart cost. No Ray here.

`events.json` in the output folder holds it while the run goes on, also over the end of a command that is resumed, and
`result.json` in the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.train.engine.news import Begun, Ended, Fact, Kind, StepDone
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently

EVENTS_FILE = "events.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a training gives when its workers are done."""

    history: Sequence[Mapping[str, float]]
    """Metrics of every epoch."""
    best: str
    """Folder name of the best checkpoint."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What happened: see `RunRecord.summary`."""
    unwritten: int = 0
    """Points of curves that MLflow did not take."""


@dataclass(slots=True, kw_only=True)
class Restart:
    """Workers ended before they were done, and others went on."""

    kind: Kind
    cause: str
    at: float
    """Unix seconds."""
    step: int
    """Steps that were complete by then."""
    from_step: int | None = None
    """Steps that were complete in the checkpoint with which the run went on; None until it did."""
    workers: int | None = None
    """Number of workers that went on."""
    steps_redone: int = 0
    """Steps that were complete and had to be done again."""
    seconds_lost: float | None = None
    """From the last step before, or where the command itself ended from the start of the next one, to the first step
    that had not been done before; None until then."""


@dataclass(slots=True, kw_only=True)
class WorkersFrom:
    """So many workers trained from then on."""

    at: float
    step: int
    workers: int


class RunRecord:
    """Takes in facts with their times (Unix seconds), in order."""

    def __init__(self) -> None:
        self.restarts: list[Restart] = []
        self.workers: list[WorkersFrom] = []
        self.step, self.running = 0, False
        """Highest number of complete steps, and whether workers are training."""
        self.complete = False
        """Whether the run has come to its end."""
        self._step_at: float | None = None

    def take(self, at: float, fact: Fact) -> None:
        """Take in one fact."""
        if isinstance(fact, Begun):
            self._begin(at, fact)
        elif isinstance(fact, StepDone) and fact.step > self.step:
            if self.restarts and self.restarts[-1].seconds_lost is None:
                self.restarts[-1].seconds_lost = round(at - (self._step_at or self.restarts[-1].at), 3)
            self.step, self._step_at = fact.step, at
        elif isinstance(fact, Ended):
            self._end(at, fact)

    def _begin(self, at: float, fact: Begun) -> None:
        self.running = True
        if self.restarts and self.restarts[-1].from_step is None:
            last = self.restarts[-1]
            last.from_step, last.workers = fact.step, fact.workers
            last.steps_redone = max(0, self.step - fact.step)
        self.step, self._step_at = max(self.step, fact.step), self._step_at or at
        self.workers.append(WorkersFrom(at=at, step=fact.step, workers=fact.workers))

    def _end(self, at: float, fact: Ended) -> None:
        self.running = False
        self.restarts.append(Restart(kind=fact.kind, cause=fact.cause, at=at, step=self.step))

    def summary(self) -> dict[str, Any]:
        """As it is in `result.json`."""
        return {
            "restarts": [asdict(each) for each in self.restarts],
            "steps_redone": sum(each.steps_redone for each in self.restarts),
            "seconds_lost": round(sum(each.seconds_lost or 0.0 for each in self.restarts), 3),
            "workers": [asdict(each) for each in self.workers],
        }

    def save(self, output: Location) -> None:
        """Write it beside the checkpoints, for a command that goes on.

        Raises:
            StorageError: it cannot be written.
        """
        content = self.summary() | {"step": self.step, "step_at": self._step_at, "complete": self.complete}
        output.child(EVENTS_FILE).write_bytes(json.dumps(content, indent=1).encode())

    @classmethod
    def continued(cls, output: Location, now: float) -> RunRecord:
        """That of the command before, which is over; an empty one where it left none that can be read.

        Args:
            output: folder of the run.
            now: Unix seconds at which this command goes on.
        """
        record = cls()
        file = output.child(EVENTS_FILE)
        if not patiently(file.exists):
            return record
        try:
            content = json.loads(patiently(file.read_bytes))
            record.restarts = [Restart(**each) for each in content["restarts"]]
            record.workers = [WorkersFrom(**each) for each in content["workers"]]
            record.step, record._step_at = int(content["step"]), content["step_at"]
            complete = bool(content["complete"])
        except (ValueError, KeyError, TypeError):
            return cls()
        if record.workers and not complete:
            record._end(record._step_at or record.workers[-1].at, Ended(kind="driver", cause="the command ended"))
        record._step_at = now
        return record
