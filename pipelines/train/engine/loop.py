"""The training loop: epochs of steps, evaluation, and its own state. Imports no Ray.

A step is a function of (config, seed, step): its images and their augmentation follow from (seed, epoch, position),
dropout from (seed, step, number of the micro-batch). So a run restored within an epoch goes on bit for bit as one that
never stopped, and the number of ranks changes the order of sums alone.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.batches import RunData
from pipelines.train.engine.checkpoint import Snapshot, TrainingState, load_checkpoint, on_host, save_checkpoint
from pipelines.train.engine.ema import WeightAverage
from pipelines.train.engine.finite import FiniteCheck, broken
from pipelines.train.engine.hooks import NoHooks, Requests, TrainHooks
from pipelines.train.engine.loss_meter import LossMeter, SeenLosses
from pipelines.train.engine.optimizer import build_optimizer
from pipelines.train.engine.progress import StepProgress
from pipelines.train.engine.ranks import Ranks
from pipelines.train.engine.schedule import learning_rate_factor, set_learning_rates
from pipelines.train.engine.seeding import seed_micro_batch
from pipelines.train.engine.validation import validate
from sparse_detr.data.sampler import share_of
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import NotFiniteError, require
from sparse_detr.losses.criterion import Criterion, LossReport, count_boxes, mean_report
from sparse_detr.records import Batch

Metrics = dict[str, float]


class TrainLoop:
    """Trains `model` on `data` as `config` says; one of `world_size` loops that share the micro-batches of every step.

    With `world_size` above 1, torch.distributed must be initialised; the validation images are shared out too.

    The loss of a step is sum_m D_m / N + sum_m S_m / n over its n micro-batches of equal size: D_m sums over boxes and
    queries and N, the objects of the whole step, divides it; S_m (token scoring) is a mean over images and tokens. With
    N / n as divisor of D_m that is the mean of the micro-batches' losses, so each is scaled by 1 / n, and by
    `world_size`, which DDP's mean over ranks takes away again.
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
        self.ranks, self.device = Ranks(rank, world_size), torch.device(device)
        self.hooks = hooks or NoHooks()
        self.model = model.to(self.device)
        self.network: nn.Module = self._distributed(model) if world_size > 1 else model
        self.optimizer = build_optimizer(model, config.optimizer, config.training.global_batch)
        self._check = FiniteCheck(config.optimizer, late=self.device.type != "cpu")
        decay = config.training.ema_decay
        self.average = WeightAverage(model, decay) if decay > 0 else None
        self.epoch = self.epoch_step = self.step = 0
        """Epochs that are complete, steps of the epoch that runs, steps over all epochs."""
        self.history: list[Metrics] = []
        """One dict an epoch."""
        self.stopped = False
        """Whether the run ended early because a rank asked for it."""
        self._numbers = share_of(config.training.micro_batches, rank, world_size)
        self._settled = world_size < 3
        self._asked = Requests()
        self._meter, self._seconds = LossMeter(self.device), 0.0

    def _distributed(self, model: nn.Module) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    @property
    def eval_model(self) -> SparseDetr:
        """The model to evaluate and to save: the averaged one where there is one."""
        return self.average.model if self.average else self.model  # type: ignore[return-value]

    def run(self) -> tuple[Metrics, ...]:
        """Train the epochs that are left, or until a rank asks to stop; return the metrics of all whole epochs.

        Raises:
            NotFiniteError: the loss or a gradient became NaN or infinite, with the step and the terms.
        """
        while self.epoch < self.config.training.epochs:
            metrics = self.train_epoch()
            if self.stopped:
                break
            self.epoch, self.epoch_step = self.epoch + 1, 0
            self._meter, self._seconds = LossMeter(self.device), 0.0
            if self._evaluation_is_due():
                metrics |= self.evaluate()
            self.history.append(metrics)
            self.hooks.epoch_done(self, self._progress(metrics))
        return tuple(self.history)

    def train_epoch(self) -> Metrics:
        """The rest of a pass over the training images; losses of the whole pass and throughput, over all ranks."""
        self.network.train()
        self.data.train.set_epoch(self.epoch, self.epoch_step)
        started = time.perf_counter() - self._seconds
        for micro_batches in self.data.train:
            report = self.train_step(micro_batches)
            self.epoch_step += 1
            self.hooks.step_done(functools.partial(self._step_progress, report.total))
            if self._asked.checkpoint or self._asked.stop:
                self._seconds = time.perf_counter() - started
                self._checkpoint()
            if self._asked.stop:
                self.stopped = True
                return {}
        self._check.settle()
        seconds = sum(self.ranks.sum([time.perf_counter() - started])) / self.ranks.world_size
        images = self.epoch_step * self.config.training.global_batch
        position = {"epoch": self.epoch + 1.0, "step": float(self.step), "lr": self.learning_rate}
        speed = {"images_per_second": images / seconds, "train_seconds": seconds}
        return position | self._meter.means(self.ranks) | speed

    def train_step(self, micro_batches: Sequence[Batch]) -> LossReport:
        """One update of the weights, from this rank's micro-batches of a step; returns the mean of their losses."""
        training = self.config.training
        factor = learning_rate_factor(self.config.optimizer, self.step, len(self.data.train), training.epochs)
        set_learning_rates(self.optimizer, factor)
        boxes = self._agree(micro_batches)
        self._settle_buckets(micro_batches[-1])
        self.optimizer.zero_grad(set_to_none=True)
        numbered = zip(self._numbers, micro_batches, strict=True)
        reports = [self._accumulate(number, batch, boxes) for number, batch in numbered]
        for each in reports:
            self._meter.add(each)
        report = mean_report(reports)
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

    def _agree(self, micro_batches: Sequence[Batch]) -> float:
        """Objects of the whole step; and what any rank asks for, so that all do the same after it."""
        asked = self.hooks.requests(self.step)
        boxes = sum(count_boxes(batch.targets) for batch in micro_batches)
        total, checkpoint, stop = self.ranks.sum([boxes, asked.checkpoint, asked.stop])
        self._asked = Requests(checkpoint=checkpoint > 0, stop=stop > 0)
        return total

    def _accumulate(self, number: int, batch: Batch, boxes: float) -> LossReport:
        """Add the gradient of one micro-batch; with the rank's last one, DDP adds those of the other ranks."""
        count = self.config.training.micro_batches
        batch = batch.to(self.device)
        seed_micro_batch(self.config.training.seed, self.step, number)
        with self._no_sync() if number != self._numbers[-1] else contextlib.nullcontext():
            with self._autocast():
                output = self.network(batch.images)
            report = self._losses(output, batch, max(boxes, 1.0) / count)
            (report.total * (self.ranks.world_size / count)).backward()  # type: ignore[no-untyped-call]
        return report

    def _settle_buckets(self, batch: Batch) -> None:
        """Let DDP choose the buckets of gradients that it keeps, with a pass that counts for nothing.

        It rebuilds them after the first pass of a process, and the order in which three or more ranks sum a gradient
        follows from its place in them: the first step after a restart would differ from that of an undisturbed run.
        """
        if not self._settled:
            self._settled = True
            self._accumulate(self._numbers[-1], batch, 1.0)

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _position(self) -> str:
        return f"step {self.step} (epoch {self.epoch + 1})"

    def _losses(self, output: Any, batch: Batch, num_boxes: float) -> LossReport:
        try:
            return self.criterion(output, batch.targets, num_boxes)
        except NotFiniteError as error:
            self._check.settle()  # the step before may be the cause
            raise NotFiniteError(f"{self._position()}: {error}") from error

    def _clip(self) -> Tensor:
        limit = self.config.optimizer.clip_norm or math.inf
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)

    def evaluate(self) -> Metrics:
        """Numbers on the validation images, the same on every rank: see `validate`."""
        return validate(self.eval_model, self.data.val, self.device, self.ranks)

    def _checkpoint(self) -> None:
        self._check.settle()
        seen = self._meter.seen(self.ranks)
        if self.ranks.rank == 0:
            self.hooks.checkpoint(self.snapshot(seen))

    def snapshot(self, seen: SeenLosses | None = None) -> Snapshot:
        """All that continues this training, copied to the host; within an epoch with what all ranks have seen of it."""
        state = TrainingState(
            epoch=self.epoch,
            epoch_step=self.epoch_step,
            step=self.step,
            optimizer=on_host(self.optimizer.state_dict()),
            weights=on_host(self.model.state_dict()) if self.average else None,
            average_updates=self.average.updates if self.average else 0,
            history=tuple(self.history),
            seen=seen,
            train_seconds=self._seconds,
        )
        return Snapshot.of(self.eval_model, state)

    def save(self, folder: Path) -> None:
        """Write a snapshot into an empty local folder; within an epoch every rank must call it."""
        snapshot = self.snapshot(self._meter.seen(self.ranks))
        save_checkpoint(folder, snapshot.model, snapshot.state)

    def restore(self, folder: Path) -> None:
        """Continue from a snapshot that was written to a local folder.

        Raises:
            CheckpointError: the folder is cut short, of another model, or unsafe.
            ConfigError: more epochs are done than this training has.
        """
        model, state = load_checkpoint(folder)
        epochs, begun = self.config.training.epochs, state.epoch + (state.epoch_step > 0)
        require(epochs >= begun, f"training.epochs: {epochs}, but {begun} are done or begun; give at least as many")
        self.model.load_state_dict(state.weights or model.state_dict())
        if self.average is not None:
            self.average.model.load_state_dict(model.state_dict())
            self.average.updates = state.average_updates
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.epoch, self.epoch_step, self.step = state.epoch, state.epoch_step, state.step
        self.history = [dict(metrics) for metrics in state.history]
        self._meter, self._seconds = LossMeter(self.device), state.train_seconds
        if state.seen is not None:
            self._meter.restore(state.seen, self.ranks)

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
