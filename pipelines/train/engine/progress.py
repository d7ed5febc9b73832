"""Progress of a training, sent from a worker to the driver without making the worker wait.

This module stays light: the board's process imports it and nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipelines.cluster.user_errors import PackedError

SHOWN_TERMS = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask_prediction")
"""Loss terms told of a step: of the last decoder layer, and of the scoring network. An epoch's row has all."""


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


OnProgress = Callable[[StepProgress], None]


class ProgressBoard:
    """Holds the last progress and the first user error; run as a Ray actor."""

    def __init__(self) -> None:
        self._progress: StepProgress | None = None
        self._user_error: PackedError | None = None

    def post(self, progress: StepProgress) -> None:
        """Replace what was posted before."""
        self._progress = progress

    def latest(self) -> StepProgress | None:
        """The progress that was posted last."""
        return self._progress

    def fail(self, packed: PackedError) -> None:
        """Note a user error, which a restart would only repeat."""
        self._user_error = self._user_error or packed

    def user_error(self) -> PackedError | None:
        """The first error noted."""
        return self._user_error
