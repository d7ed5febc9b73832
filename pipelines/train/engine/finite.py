"""Stops a training at the step whose loss or gradient is not finite, without making the device wait."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.recipes.optimizer import OptimizerConfig
from sparse_detr.errors import NotFiniteError
from sparse_detr.losses.criterion import LossReport


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    """The norm and the loss terms of one step, on their way to the host."""

    position: str
    names: tuple[str, ...]
    values: Tensor
    """Norm, then the terms; on the host once `arrived` is over."""
    arrived: torch.cuda.Event | None


class FiniteCheck:
    """Looks at the numbers of a step one step later.

    A GPU runs some hundred kernels behind the loop; to ask it for a number at once would empty that queue in every
    step. By the next step the number is on the host. Until then `broken` keeps the optimizer from using it.

    Args:
        late: False, on a CPU, where nothing is behind, stops at once. Never by whether the number has arrived: the
            ranks must all stop at the same place, or one would wait for the gradients of another that left.
    """

    def __init__(self, config: OptimizerConfig, *, late: bool) -> None:
        self._config, self._late = config, late
        self._noted: _Noted | None = None

    def note(self, position: str, norm: Tensor, report: LossReport) -> None:
        """Take up a step.

        After DDP's averaging a NaN of any rank is in every rank's gradients, and so in every rank's norm.

        Args:
            position: the step, for the message.
            norm: of all gradients, before clipping.

        Raises:
            NotFiniteError: this step broke, unless `late`.
        """
        values = torch.stack([norm.detach().float(), *(value.detach().float() for value in report.terms.values())])
        arrived = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._noted = _Noted(position=position, names=tuple(report.terms), values=values, arrived=arrived)
        if not self._late:
            self.settle()

    def settle(self) -> None:
        """Look at the step that was noted last.

        Raises:
            NotFiniteError: it broke, with the terms that did.
        """
        noted, self._noted = self._noted, None
        if noted is None:
            return
        if noted.arrived is not None:
            noted.arrived.synchronize()
        # As numpy: to take a number out of a tensor counts as a wait in torch's own search for them.
        norm, *terms = noted.values.numpy().tolist()
        if math.isfinite(norm):
            return
        bad = [name for name, value in zip(noted.names, terms, strict=True) if not math.isfinite(value)]
        where = f"of {', '.join(bad)}" if bad else f"of the gradient (norm {norm}); the loss terms are finite here"
        raise NotFiniteError(
            f"{noted.position}: NaN or infinity {where}; training has diverged: lower "
            f"optimizer.lr ({self._config.lr}) or optimizer.clip_norm ({self._config.clip_norm})"
        )


def broken(norm: Tensor) -> Tensor:
    """1 where the norm is not finite, else 0, on the norm's device: what a fused optimizer knows as `found_inf`."""
    return (~norm.isfinite()).float()
