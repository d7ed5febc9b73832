"""The training loop: epochs of steps, evaluation, and its own state. Imports no Ray.

Everything random in an epoch follows from (seed, epoch, rank), so a run restored at the end of an epoch goes on
bit for bit as one that never stopped.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.batches import RunData
from pipelines.train.engine.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from pipelines.train.engine.ema import WeightAverage
from pipelines.train.engine.finite import FiniteCheck, broken
from pipelines.train.engine.loss_meter import LossMeter
from pipelines.train.engine.optimizer import build_optimizer
from pipelines.train.engine.progress import StepProgress
from pipelines.train.engine.schedule import learning_rate_factor, set_learning_rates
from pipelines.train.engine.validation import detect, flat_metrics, validation_metrics, validation_overlap
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import NotFiniteError, require
from sparse_detr.evaluation.attention_overlap import OverlapMean
from sparse_detr.losses.criterion import Criterion, LossReport
from sparse_detr.records import Batch

Metrics = dict[str, float]


class TrainHooks(Protocol):
    """Receives the news of a loop."""

    def step_done(self, progress: Callable[[], StepProgress]) -> None:
        """After every step, on every rank; must be quick: to call `progress` waits for the device."""

    def epoch_done(self, loop: TrainLoop, progress: StepProgress) -> None:
        """After every epoch and its evaluation, on every rank; may call `loop.save`."""


class NoHooks:
    """Tells nobody."""

    def step_done(self, progress: Callable[[], StepProgress]) -> None:
        """Nothing."""

    def epoch_done(self, loop: TrainLoop, progress: StepProgress) -> None:
        """Nothing."""


class TrainLoop:
    """Trains `model` on `data` as `config` says; one of `world_size` equal loops.

    With `world_size` above 1, torch.distributed must be initialised; gradients, losses and throughput are averaged
    over the ranks, and the validation images are shared out among them.
    """

    def __init__(
        self,
        config: RunConfig,
        model: SparseDetr,
        criterion: Criterion,
        data: RunData,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        hooks: TrainHooks | None = None,
    ) -> None:
        self.config, self.criterion, self.data = config, criterion, data
        self.rank, self.world_size, self.device = rank, world_size, torch.device(device)
        self.hooks = hooks or NoHooks()
        self.model = model.to(self.device)
        self.network: nn.Module = self._distributed(model) if world_size > 1 else model
        self.optimizer = build_optimizer(model, config.optimizer, config.training.global_batch)
        self._check = FiniteCheck(config.optimizer, late=self.device.type != "cpu")
        decay = config.training.ema_decay
        self.average = WeightAverage(model, decay) if decay > 0 else None
        self.epoch = 0
        """Epochs that are complete."""
        self.step = 0
        """Steps that are complete."""
        self.history: list[Metrics] = []
        """One dict an epoch."""

    def _distributed(self, model: nn.Module) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    @property
    def eval_model(self) -> SparseDetr:
        """The model to evaluate and to save: the averaged one where there is one."""
        return self.average.model if self.average else self.model  # type: ignore[return-value]

    def run(self) -> tuple[Metrics, ...]:
        """Train the epochs that are left; return the metrics of all epochs.

        Raises:
            NotFiniteError: the loss or a gradient became NaN or infinite, with the step and the terms.
        """
        while self.epoch < self.config.training.epochs:
            metrics = self.train_epoch()
            self.epoch += 1
            if self._evaluation_is_due():
                metrics |= self.evaluate()
            self.history.append(metrics)
            self.hooks.epoch_done(self, self._progress(metrics))
        return tuple(self.history)

    def train_epoch(self) -> Metrics:
        """One pass over this rank's training images; losses and throughput over all ranks."""
        seed_everything(self.config.training.seed, self.epoch, self.rank)
        self.data.train.set_epoch(self.epoch)
        self.network.train()
        loss_meter = LossMeter(self.device)
        started = time.perf_counter()
        for batch in self.data.train:
            report = self.train_step(batch)
            loss_meter.add(report, len(batch.images))
            self.hooks.step_done(functools.partial(self._step_progress, report.total.detach()))
        self._check.settle()
        seconds = time.perf_counter() - started
        position = {"epoch": self.epoch + 1.0, "step": float(self.step), "lr": self.learning_rate}
        return position | loss_meter.means(seconds, self.world_size)

    def train_step(self, batch: Batch) -> LossReport:
        """Forward, losses, backward, clipping and update for one batch of this rank."""
        training = self.config.training
        factor = learning_rate_factor(self.config.optimizer, self.step, len(self.data.train), training.epochs)
        set_learning_rates(self.optimizer, factor)
        batch = batch.to(self.device)
        with self._autocast():
            output = self.network(batch.images)
        report = self._losses(output, batch)
        self.optimizer.zero_grad(set_to_none=True)
        report.total.backward()  # type: ignore[no-untyped-call]
        self._check.settle()
        norm = self._clip()
        self._check.note(self._position(), norm, report)
        # The fused step leaves weights and moments as they are where this is 1, as GradScaler tells it to.
        self.optimizer.found_inf = broken(norm)  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.step += 1
        return report

    def _position(self) -> str:
        return f"step {self.step} (epoch {self.epoch + 1})"

    def _losses(self, output: Any, batch: Batch) -> LossReport:
        try:
            return self.criterion(output, batch.targets)
        except NotFiniteError as error:
            self._check.settle()  # the step before may be the cause
            raise NotFiniteError(f"{self._position()}: {error}") from error

    def _clip(self) -> Tensor:
        limit = self.config.optimizer.clip_norm or math.inf
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)

    def evaluate(self) -> Metrics:
        """On the validation images, the same on every rank: COCO's numbers, and for sparse models `corr`, the share of
        the decoder's attention that falls on kept tokens, over all levels and (`corr_0`, ...) on each."""
        started = time.perf_counter()
        overlap = OverlapMean() if self.config.model.sparse else None
        with self._autocast():
            results = detect(self.eval_model, self.data.val, self.data.classes, self.device, overlap)
        metrics = flat_metrics(validation_metrics(results, self.data.ground_truth, world_size=self.world_size))
        if overlap is not None:
            metrics |= validation_overlap(overlap, world_size=self.world_size)
        return metrics | {"evaluation_seconds": time.perf_counter() - started}

    def save(self, folder: Path) -> None:
        """Write the model and all that continues this training into an empty local folder."""
        raw = self.model.state_dict() if self.average else None
        state = TrainingState(
            epoch=self.epoch,
            step=self.step,
            optimizer=self.optimizer.state_dict(),
            weights=raw,
            average_updates=self.average.updates if self.average else 0,
            history=self.history,
        )
        save_checkpoint(folder, self.eval_model, state)

    def restore(self, folder: Path) -> None:
        """Continue from what `save` wrote.

        Raises:
            CheckpointError: the folder is cut short, of another model, or unsafe.
            ConfigError: more epochs are done than this training has.
        """
        model, state = load_checkpoint(folder)
        epochs = self.config.training.epochs
        require(epochs >= state.epoch, f"training.epochs: {epochs}, but {state.epoch} are done; give at least as many")
        self.model.load_state_dict(state.weights or model.state_dict())
        if self.average is not None:
            self.average.model.load_state_dict(model.state_dict())
            self.average.updates = state.average_updates
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.epoch, self.step = state.epoch, state.step
        self.history = [dict(metrics) for metrics in state.history]

    @property
    def learning_rate(self) -> float:
        """The rate of the largest group in the step just done."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _evaluation_is_due(self) -> bool:
        training = self.config.training
        return self.epoch % training.evaluate_every == 0 or self.epoch == training.epochs

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.training.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _step_progress(self, loss: Tensor) -> StepProgress:
        return self._progress({"loss": float(loss), "lr": self.learning_rate})

    def _progress(self, metrics: Metrics) -> StepProgress:
        epochs = self.config.training.epochs
        steps = epochs * len(self.data.train)
        return StepProgress(epoch=self.epoch, epochs=epochs, step=self.step, steps=steps, metrics=metrics)


def seed_everything(seed: int, epoch: int, rank: int) -> None:
    """Seed Python, numpy and torch for one epoch of one rank; different for every triple."""
    value = int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
