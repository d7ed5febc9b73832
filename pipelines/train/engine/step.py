"""One optimizer step: the micro-batches of a rank forward and backward, gradients of all ranks, clipping, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.activation_checkpointing import checkpoint_activations
from pipelines.train.engine.ema import WeightAverage
from pipelines.train.engine.evidence import EvidenceStore, StepEvidence
from pipelines.train.engine.finite import FiniteCheck, broken
from pipelines.train.engine.optimizer import build_optimizer
from pipelines.train.engine.ranks import Ranks
from pipelines.train.engine.schedule import set_learning_rates
from pipelines.train.engine.seeding import seed_micro_batch
from sparse_detr.data.sampler import share_of
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import NotFiniteError
from sparse_detr.losses.criterion import Criterion, LossReport, mean_report
from sparse_detr.records import Batch


class TrainStep:
    """The model with all that changes it.

    The loss of a step is sum_m D_m / N + sum_m S_m / n over its n micro-batches of equal size: D_m sums over boxes and
    queries and N, the objects of the whole step, divides it; S_m (token scoring) is a mean over images and tokens. With
    N / n as divisor of D_m that is the mean of the micro-batches' losses, so each is scaled by 1 / n, and by the number
    of ranks, which DDP's mean over ranks takes away again.
    """

    def __init__(
        self, config: RunConfig, model: SparseDetr, criterion: Criterion, ranks: Ranks, device: torch.device
    ) -> None:
        self.criterion = criterion
        self._config, self._ranks, self._device = config, ranks, device
        self.model = model.to(device)
        self.network: nn.Module = self._distributed() if ranks.world_size > 1 else model
        self.optimizer = build_optimizer(model, config.optimizer, config.training.global_batch)
        self.check = FiniteCheck(
            config.optimizer,
            late=device.type != "cpu",
            mode=config.training.not_finite,
            keep=EvidenceStore(config, self.model, ranks, device).keep,
        )
        decay = config.training.ema_decay
        self.average = WeightAverage(model, decay) if decay > 0 else None
        # After the average was copied: it is only evaluated, and its layers would call those of the model.
        checkpoint_activations(model, config.training.activation_checkpointing)
        self._numbers = share_of(config.training.micro_batches, ranks.rank, ranks.world_size)
        self._settled = ranks.world_size < 3
        self._step = 0

    def _distributed(self) -> nn.Module:
        devices = [self._device] if self._device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True)

    def __call__(
        self, micro_batches: Sequence[Batch], *, step: int, epoch: int, boxes: float, rate: float
    ) -> tuple[LossReport, Sequence[LossReport]]:
        """Update the weights; the mean losses of this rank's micro-batches, and the losses of each.

        Args:
            micro_batches: this rank's share of the step.
            step: from 0 over the whole run.
            epoch: from 0, for messages.
            boxes: objects of the whole step, over all ranks.
            rate: factor on the base learning rates.

        Raises:
            NotFiniteError: the loss or a gradient became NaN or infinite, with the step and the terms, and the run does
                not skip such steps.
        """
        self.begin(step)
        set_learning_rates(self.optimizer, rate)
        self._settle_buckets(micro_batches[-1])
        self.optimizer.zero_grad(set_to_none=True)
        numbered = dict(zip(self._numbers, micro_batches, strict=True))
        reports = [self.accumulate(number, batch, boxes) for number, batch in numbered.items()]
        report = mean_report(reports)
        self.check.settle()
        norm = self._clip()
        terms = [each.terms for each in reports]
        evidence = StepEvidence(step=step, epoch=epoch, boxes=boxes, micro_batches=numbered, terms=terms)
        self.check.note(f"step {step} (epoch {epoch + 1})", norm, report, evidence)
        self._apply(broken(norm))
        if self.average is not None:
            self.average.update(self.model)
        return report, reports

    def begin(self, step: int) -> None:
        """Say which step of the whole run the next micro-batches belong to."""
        self._step = step

    def _apply(self, found: Tensor) -> None:
        """Update the weights, unless `found` is 1."""
        if self._config.optimizer.fused:
            # The fused step leaves weights and moments as they are where this is 1, as GradScaler tells it to.
            self.optimizer.found_inf = found  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not found:
            self.optimizer.step()

    def accumulate(self, number: int, batch: Batch, boxes: float) -> LossReport:
        """Add the gradient of one micro-batch; with the rank's last one, DDP adds those of the other ranks."""
        count = self._config.training.micro_batches
        batch = batch.to(self._device)
        seed_micro_batch(self._config.training.seed, self._step, number)
        with self._no_sync() if number != self._numbers[-1] else contextlib.nullcontext():
            with self._autocast():
                output = self.network(batch.images)
            report = self.losses(output, batch, max(boxes, 1.0) / count)
            (report.total * (self._ranks.world_size / count)).backward()  # type: ignore[no-untyped-call]
        return report

    def losses(self, output: Any, batch: Batch, num_boxes: float) -> LossReport:
        """Losses of a micro-batch, also where they are not finite: then all ranks find out by the gradient."""
        try:
            return self.criterion(output, batch.targets, num_boxes)
        except NotFiniteError:
            return self.criterion(output, batch.targets, num_boxes, checked=False)

    def _settle_buckets(self, batch: Batch) -> None:
        """Let DDP choose the buckets of gradients that it keeps, with a pass that counts for nothing.

        It rebuilds them after the first pass of a process, and the order in which three or more ranks sum a gradient
        follows from its place in them: the first step after a restart would differ from that of an undisturbed run.
        """
        if not self._settled:
            self._settled = True
            self.accumulate(self._numbers[-1], batch, 1.0)

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._config.training.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def _clip(self) -> Tensor:
        limit = self._config.optimizer.clip_norm or math.inf
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)
