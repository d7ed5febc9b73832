"""The training loop: epochs of steps, evaluation, and its own state. Imports no Ray.

A step is a function of (config, seed, step): its images and their augmentation follow from (seed, epoch, position),
dropout from (seed, step, number of the micro-batch). So a run restored within an epoch goes on bit for bit as one that
never stopped, and the number of ranks changes the order of sums alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.batches import RunData
from pipelines.train.engine.broken_images import BrokenImages
from pipelines.train.engine.checkpoint import Snapshot, TrainingState, load_checkpoint, on_host, save_checkpoint
from pipelines.train.engine.hooks import NoHooks, Requests, TrainHooks
from pipelines.train.engine.loss_meter import LossMeter, SeenLosses
from pipelines.train.engine.pace import Pace
from pipelines.train.engine.progress import SHOWN_TERMS, StepProgress
from pipelines.train.engine.ranks import Ranks
from pipelines.train.engine.schedule import learning_rate_factor
from pipelines.train.engine.step import TrainStep
from pipelines.train.engine.validation import validate
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import require
from sparse_detr.losses.criterion import Criterion, LossReport, count_boxes
from sparse_detr.records import Batch

Metrics = dict[str, float]


class TrainLoop:
    """Trains `model` on `data` as `config` says; one of `world_size` loops that share the micro-batches of every step.

    With `world_size` above 1, torch.distributed must be initialised; the validation images are shared out too.
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
        self.config, self.data = config, data
        self.ranks, self.device = Ranks(rank, world_size), torch.device(device)
        self.hooks = hooks or NoHooks()
        self.update = TrainStep(config, model, criterion, self.ranks, self.device)
        self.model, self.network = self.update.model, self.update.network
        self.optimizer, self.average = self.update.optimizer, self.update.average
        self.epoch = self.epoch_step = self.step = 0
        """Epochs that are complete, steps of the epoch that runs, steps over all epochs."""
        self.history: list[Metrics] = []
        """One dict an epoch."""
        self.stopped = False
        """Whether the run ended early because a rank asked for it."""
        self._asked = Requests()
        self.broken = BrokenImages(data.broken)
        """Training images that could not be used, and for which others stood in."""
        self._meter, self._seconds = LossMeter(self.device), 0.0
        self._pace = Pace(config.training.global_batch, self.device)

    @property
    def eval_model(self) -> SparseDetr:
        """The model to evaluate and to save: the averaged one where there is one."""
        return self.average.model if self.average else self.model  # type: ignore[return-value]

    def run(self) -> tuple[Metrics, ...]:
        """Train the epochs that are left, or until a rank asks to stop; return the metrics of all whole epochs.

        Raises:
            NotFiniteError: the loss or a gradient became NaN or infinite, with the step and the terms.
            ImageError, ErrorBudgetError: a training image is broken, or more of them than are allowed.
        """
        while self.epoch < self._epochs:
            metrics = self.train_epoch()
            if self.stopped:
                break
            self.epoch, self.epoch_step = self.epoch + 1, 0
            self._meter, self._seconds = LossMeter(self.device), 0.0
            self.update.check.skipped = 0
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
        self._pace.begin()
        for micro_batches in self._pace.steps(self.data.train):
            report = self.train_step(micro_batches)
            self.epoch_step += 1
            self.hooks.step_done(functools.partial(self._step_progress, report))
            if self._asked.checkpoint or self._asked.stop:
                self._seconds = time.perf_counter() - started
                self._checkpoint()
            if self._asked.stop:
                self.stopped = True
                return {}
        self.update.check.settle()
        seconds = sum(self.ranks.sum([time.perf_counter() - started])) / self.ranks.world_size
        images = self.epoch_step * self.config.training.global_batch
        position = {"epoch": self.epoch + 1.0, "step": float(self.step), "lr": self.learning_rate}
        speed = {"images_per_second": images / seconds, "train_seconds": seconds,
                 "data_wait": self._pace.waited / seconds}  # fmt: skip
        return position | self._meter.means(self.ranks) | speed | self.broken.metrics | self.update.check.metrics

    def train_step(self, micro_batches: Sequence[Batch]) -> LossReport:
        """One update of the weights, from this rank's micro-batches of a step; returns the mean of their losses."""
        config = self.config
        rate = learning_rate_factor(config.optimizer, self.step, len(self.data.train), config.training.epochs)
        boxes = self._agree(micro_batches)
        report, each = self.update(micro_batches, step=self.step, epoch=self.epoch, boxes=boxes, rate=rate)
        for one in each:
            self._meter.add(one)
        self.step += 1
        return report

    def _agree(self, micro_batches: Sequence[Batch]) -> float:
        """Objects of the whole step; and what any rank asks for or has found, so that all do the same."""
        asked = self.hooks.requests(self.step)
        boxes = sum(count_boxes(batch.targets) for batch in micro_batches)
        broken = self.broken.new(micro_batches)
        total, checkpoint, stop, found = self.ranks.sum([boxes, asked.checkpoint, asked.stop, len(broken)])
        if found:
            self.broken.share(broken, self.ranks)
        self._asked = Requests(checkpoint=checkpoint > 0, stop=stop > 0)
        return total

    def evaluate(self) -> Metrics:
        """Numbers on the validation images, the same on every rank: see `validate`."""
        return validate(self.eval_model, self.data.val, self.device, self.ranks, self.hooks.evaluating)

    def _checkpoint(self) -> None:
        self.update.check.settle()
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
            broken=self.broken.found,
            skipped_updates=(self.update.check.skipped, self.update.check.in_a_row),
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
        self.broken = BrokenImages(self.data.broken, state.broken)
        self.update.check.skipped, self.update.check.in_a_row = state.skipped_updates
        if state.seen is not None:
            self._meter.restore(state.seen, self.ranks)

    @property
    def learning_rate(self) -> float:
        """The rate of the largest group in the step just done."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    @property
    def _epochs(self) -> int:
        """Epochs of the whole run: those that are done where the AP has not been above its best for long enough."""
        training, aps = self.config.training, [metrics.get("ap", -1.0) for metrics in self.history]
        waits = training.early_stop_epochs is not None and bool(aps) and aps[-1] >= 0
        if waits and len(aps) - 1 - aps.index(max(aps)) >= (training.early_stop_epochs or 0):
            return self.epoch
        return training.epochs

    def _evaluation_is_due(self) -> bool:
        training = self.config.training
        return self.epoch % training.evaluate_every == 0 or self.epoch == training.epochs

    def _step_progress(self, report: LossReport) -> StepProgress:
        losses = {"loss": report.total} | {name: report.terms[name] for name in SHOWN_TERMS if name in report.terms}
        # One transfer: each would wait for the device.
        values = torch.stack([value.detach().float() for value in losses.values()]).cpu()
        numbers = {name: float(value) for name, value in zip(losses, values, strict=True)}
        return self._progress(numbers | {"lr": self.learning_rate} | self._pace.numbers())

    def _progress(self, metrics: Metrics) -> StepProgress:
        epochs = self._epochs
        steps = epochs * len(self.data.train)
        return StepProgress(epoch=self.epoch, epochs=epochs, step=self.step, steps=steps, metrics=metrics)
