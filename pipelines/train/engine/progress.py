"""Progress of a training, sent from a worker to the driver without making the worker wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

SHOWN_TERMS: Mapping[str, str] = {
    "loss_ce": "class", "loss_bbox": "box", "loss_giou": "GIoU", "loss_mask_prediction": "scoring",
}  # fmt: skip
"""Loss terms told of a step, and what they are called: of the last decoder layer, and of the scoring network. An
epoch's row has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """Position of a training; cheap to send."""

    epoch: int
    """Epochs that are complete."""
    epochs: int
    """Epochs of the whole run."""
    step: int
    """Steps that are complete, over all epochs."""
    steps: int
    """Steps of the whole run."""
    metrics: Mapping[str, float]
    """Of a step: `loss`, SHOWN_TERMS, `lr`, and the pace (`images_per_second`, `data_wait`, `memory_mib`); after an
    epoch all of its metrics, `epoch` among them."""

    @property
    def ends_epoch(self) -> bool:
        """Whether these are the metrics of a whole epoch."""
        return "epoch" in self.metrics


OnProgress = Callable[[StepProgress], None]
OnNotice = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """Who wants to hear of a training while it runs; both are called in another thread than `train`."""

    on_progress: OnProgress | None = None
    """About three times a second."""
    on_notice: OnNotice | None = None
    """Now and then, with a line for the user."""
