"""Finds the step whose loss or gradient is not finite, without making the device wait; stops, or leaves it out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.recipes.optimizer import OptimizerConfig
from pipelines.train.engine.evidence import StepEvidence
from sparse_detr.errors import NotFiniteError
from sparse_detr.losses.criterion import LossReport

logger = logging.getLogger(__name__)

IN_A_ROW = 10
"""Steps whose update is left out, one behind the other, after which a run has diverged and stops."""
KEPT = 5
"""Steps that one process keeps for a replay: each is as large as the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    """The norm and the loss terms of one step, on their way to the host, and what it was made of."""

    position: str
    names: tuple[str, ...]
    values: Tensor
    """Norm, then the terms; on the host once `arrived` is over."""
    arrived: torch.cuda.Event | None
    evidence: StepEvidence


class FiniteCheck:
    """Looks at the numbers of a step one step later.

    A GPU runs some hundred kernels behind the loop; to ask it for a number at once would empty that queue in every
    step. By the next step the number is on the host. Until then `broken` keeps the optimizer from using it, so that the
    weights are still those before the step. Its images stay on the host for as long; on a CPU they do not.

    Args:
        mode: as `training.not_finite`.
        late: False, on a CPU, where nothing is behind, looks at once. Never by whether the number has arrived: the
            ranks must all stop at the same place, or one would wait for the gradients of another that left.
        keep: keeps a step, and says where; called on every rank.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        *,
        late: bool,
        mode: Literal["stop", "skip"] = "stop",
        keep: Callable[[StepEvidence, str], str] | None = None,
    ) -> None:
        self._config, self._late, self._mode, self._keep = config, late, mode, keep
        self._noted: _Noted | None = None
        self._kept = 0
        self.skipped = self.in_a_row = 0
        """Updates left out in this epoch, and behind the last one that was not."""

    @property
    def metrics(self) -> dict[str, float]:
        """Updates left out in the epoch, for the history of a run that does so."""
        return {"skipped_updates": float(self.skipped)} if self._mode == "skip" else {}

    def note(self, position: str, norm: Tensor, report: LossReport, evidence: StepEvidence) -> None:
        """Take up a step.

        After DDP's averaging a NaN of any rank is in every rank's gradients, and so in every rank's norm.

        Args:
            position: the step, for the message.
            norm: of all gradients, before clipping.
            evidence: what the step was made of.

        Raises:
            NotFiniteError: this step broke and ends the run, unless `late`.
        """
        values = torch.stack([norm.detach().float(), *(value.detach().float() for value in report.terms.values())])
        arrived = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._noted = _Noted(
            position=position, names=tuple(report.terms), values=values, arrived=arrived, evidence=evidence
        )
        if not self._late:
            self.settle()

    def settle(self) -> None:
        """Look at the step that was noted last.

        Raises:
            NotFiniteError: it broke and ends the run, with the terms that did.
        """
        noted, self._noted = self._noted, None
        if noted is None:
            return
        if noted.arrived is not None:
            noted.arrived.synchronize()
        # As numpy: to take a number out of a tensor counts as a wait in torch's own search for them.
        norm, *terms = noted.values.numpy().tolist()
        if math.isfinite(norm):
            self.in_a_row = 0
            return
        bad = [name for name, value in zip(noted.names, terms, strict=True) if not math.isfinite(value)]
        where = f"of {', '.join(bad)}" if bad else f"of the gradient (norm {norm}); the loss terms are finite here"
        self._handle(noted.evidence, f"{noted.position}: NaN or infinity {where}")

    def _handle(self, evidence: StepEvidence, what: str) -> None:
        kept = ""
        # Of steps in a row the first is the one to look at.
        if self._keep is not None and self.in_a_row == 0 and self._kept < KEPT:
            self._kept += 1
            kept = "; " + self._keep(evidence, what)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self._mode == "skip" and self.in_a_row <= IN_A_ROW:
            logger.warning("%s; its update is left out%s", what, kept)
            return
        row = f", the last of {self.in_a_row} steps in a row" if self.in_a_row > 1 else ""
        raise NotFiniteError(
            f"{what}{row}; training has diverged: lower optimizer.lr ({self._config.lr}) or optimizer.clip_norm "
            f"({self._config.clip_norm}){kept}"
        )


def broken(norm: Tensor) -> Tensor:
    """1 where the norm is not finite, else 0, on the norm's device: what a fused optimizer knows as `found_inf`."""
    return (~norm.isfinite()).float()
