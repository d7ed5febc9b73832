"""What a run finds before its first step: boxes that its data loses, and where its weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.console import listing
from pipelines.run_data import CheckedData
from pipelines.run_parts import StartReport
from pipelines.tracking import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """For the terminal, and for the MLflow run."""

    data: CheckedData
    """What there is to train on."""
    weights: StartReport | None = None
    """None where a run goes on from its checkpoint, and for a sweep, whose trials start each in their own way."""

    def describe(self) -> str:
        """Some lines: images, the first boxes that were left out, starting weights."""
        lines = [f"{self.data.train_images} training images, {self.data.val_images} held out"]
        if self.data.dropped:
            lines.append(listing("Boxes left out", self.data.dropped))
        if self.weights is not None:
            lines.append(f"Starting weights: {self.weights.describe()}")
        return "\n".join(lines)

    def record(self, tracker: Tracker) -> None:
        """Write the count and the whole list of the boxes, and the starting weights."""
        tracker.metrics({"dropped_boxes": float(len(self.data.dropped))}, 0)
        if self.data.dropped:
            tracker.text("\n".join(self.data.dropped), "dropped_boxes.txt")
        if self.weights is not None:
            self.weights.record(tracker)


OnStart = Callable[[RunStart], None]
"""Called once, before the workers start."""
