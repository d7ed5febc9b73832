"""What a training would do: data, model, a few steps measured here, how long it would take and what it writes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.recipes.config import RunConfig
from pipelines.tracking.mlflow_store import resolved_uri
from pipelines.train.engine.batches import RunData, TrainBatches, load_data
from pipelines.train.engine.loop import TrainLoop
from pipelines.train.engine.ranks import Ranks
from pipelines.train.engine.trial import peak_memory, trial_device, trial_loop
from pipelines.train.engine.validation import ValidationImages, detect
from pipelines.train.output import claim_output, continued_run
from pipelines.train.preflight import Preflight, RunStart, preflight
from sparse_detr.cost.model import ModelCost, model_cost
from sparse_detr.records import Batch
from sparse_detr.redaction import without_secrets

STEPS, SECONDS = 10, 30.0
"""Steps are timed until there are so many, or so much time has passed; at least two, after one that is not."""
VALIDATION = 8
"""Validation images that are timed, after as many that are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a run would do."""

    config: RunConfig
    """With absolute paths and the classes of the data."""
    start: RunStart
    """Findings before the first step: data, starting weights."""
    cost: ModelCost
    """Of a validation image of 4:3, by formula."""
    device: str
    """Where the steps below were measured."""
    share: int
    """Micro-batches of a step that the busiest worker computes."""
    steps_per_epoch: int
    step_seconds: tuple[float, ...]
    """Of the busiest worker's share of each step that was timed, images included, exchange of gradients left out."""
    validation_seconds: float
    """Of one validation image."""
    memory: int
    """Bytes: the most that the process, or the GPU, had in use while a step ran."""
    checkpoint_bytes: int
    found: tuple[str, ...]
    """What is in the output already."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * self.config.training.epochs

    @property
    def hours(self) -> float:
        """Of the whole run, all workers as fast as one here; start, exchange of gradients, checkpoints left out."""
        training = self.config.training
        evaluations = math.ceil(training.epochs / training.evaluate_every)
        validation = evaluations * self.start.data.val_images * self.validation_seconds / training.workers
        return (self.steps * statistics.median(self.step_seconds) + validation) / 3600

    def facts(self) -> Mapping[str, object]:
        """Rows for the terminal."""
        training, step = self.config.training, statistics.median(self.step_seconds)
        spread = f"{min(self.step_seconds):.3g} to {max(self.step_seconds):.3g}"
        batch = f"{training.global_batch} images in {training.micro_batches} micro-batches"
        memory = "GPU memory of a worker" if self.device == "cuda" else "memory of a worker"
        return {
            "training images": self.start.data.train_images,
            "validation images": self.start.data.val_images,
            "classes": len(self.start.data.classes),
            "parameters": f"{self.cost.whole.parameters:,}",
            "operations of an image": f"{self.cost.whole.total / 1e9:.4g} 10^9",
            "a step": f"{batch}, of which a worker gets up to {self.share}",
            "steps": f"{self.steps_per_epoch} an epoch, {self.steps} in all",
            "measured on": f"{self.device}, {training.cpus_per_worker} threads",
            "seconds a step": f"{step:.3g} ({spread}, {len(self.step_seconds)} steps)",
            "images/s of all workers": training.global_batch / step,
            memory: f"{self.memory / 2**30:.2f} GiB",
            "seconds a validation image": self.validation_seconds,
            "hours": self.hours,
            "checkpoint": f"{self.checkpoint_bytes / 2**20:.0f} MiB, up to {training.keep_checkpoints + 1} are kept",
            "output": self.config.output + (f" (has {', '.join(self.found)})" if self.found else ""),
            "MLflow": without_secrets(resolved_uri(self.config.tracking_uri)),
        }


def dry_run(config: RunConfig) -> TrainingPlan:
    """Check what `train` checks, build what a worker builds, and run some of its steps here; write nothing.

    Raises:
        SparseDetrError: as `train`, and what its first steps would raise.
    """
    checked = preflight(config)
    claim = claim_output(checked.output, checked.config)
    config, _ = continued_run(claim, checked.config)
    device = trial_device(config)
    workers, training = config.training.workers, config.training
    data = load_data(config, world_size=workers)
    share = math.ceil(training.micro_batches / workers)
    size = training.images_per_micro_batch
    # One rank that has the busiest worker's share for its whole step.
    alone = replace(config, training=replace(training, workers=1, micro_batch=size, global_batch=share * size))
    loop, _ = trial_loop(alone, data, device)
    with peak_memory(device) as peak:
        seconds = tuple(_timed_steps(loop, data.train))
    return TrainingPlan(
        config=config,
        start=checked.start,
        cost=_cost(checked),
        device=device.type,
        share=share,
        steps_per_epoch=len(data.train),
        step_seconds=seconds,
        validation_seconds=_validation_seconds(loop, data),
        memory=peak.bytes,
        checkpoint_bytes=_checkpoint_bytes(loop),
        found=claim.found,
    )


def _timed_steps(loop: TrainLoop, batches: TrainBatches) -> Iterator[float]:
    """Seconds of steps, images included; the first, which warms up, is left out."""
    steps = _endless(batches)
    loop.train_step(next(steps))
    count, began = 0, time.perf_counter()
    before = began
    while count < 2 or (count < STEPS and before - began < SECONDS):
        report = loop.train_step(next(steps))
        float(report.total)  # waits for the device
        now = time.perf_counter()
        yield now - before
        before, count = now, count + 1


def _endless(batches: TrainBatches) -> Iterator[Sequence[Batch]]:
    epoch = 0
    while True:
        batches.set_epoch(epoch)
        yield from batches
        epoch += 1


def _validation_seconds(loop: TrainLoop, data: RunData) -> float:
    few = _first(data.val, VALIDATION)
    detect(loop.eval_model, few, loop.device, Ranks())
    began = time.perf_counter()
    detect(loop.eval_model, few, loop.device, Ranks())
    return (time.perf_counter() - began) / len(few.index.images)


def _first(images: ValidationImages, count: int) -> ValidationImages:
    return replace(images, index=replace(images.index, images=images.index.images[:count]))


def _cost(checked: Preflight) -> ModelCost:
    size = checked.config.data.image_size
    return model_cost(checked.config.model, size.short_side, min(size.short_side * 4 // 3, size.max_side))


def _checkpoint_bytes(loop: TrainLoop) -> int:
    """Model, two moments of AdamW for what is trained, and the raw weights where the model is their average."""
    weights = sum(value.nbytes for value in loop.model.state_dict().values())
    moments = sum(2 * value.nbytes for value in loop.model.parameters() if value.requires_grad)
    return int(weights * (2 if loop.average else 1) + moments)
