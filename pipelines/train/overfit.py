"""One batch learned until its objects are detected: what a training that can learn at all does within minutes.

Model, losses, optimizer and validation are those of the run. What keeps a run from learning its images by heart is off:
augmentation, dropout, the average of the weights and the decay of the learning rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pipelines.cluster.session import prepare_environment
from pipelines.recipes.config import RunConfig
from pipelines.recipes.optimizer import OptimizerConfig
from pipelines.train.engine.batches import RunData, data_of, read_annotations, require_locations
from pipelines.train.engine.evidence import StepEvidence
from pipelines.train.engine.finite import FiniteCheck
from pipelines.train.engine.loop import TrainLoop
from pipelines.train.engine.trial import trial_device, trial_loop
from sparse_detr.data.coco_index import CocoImage, CocoIndex
from sparse_detr.data.transforms import AugmentConfig
from sparse_detr.errors import require
from sparse_detr.losses.criterion import LossReport

GOAL = 0.9
"""AP on the batch."""
STEPS, LOOK = 1000, 50
"""Steps after which it is given up, and between two evaluations."""
EDGE = 5
"""Losses of so many steps at the beginning and the end are compared."""
FALLEN, MOVED = 0.5, 1e-3
"""A loss has fallen if it is below this share of what it was; weights have moved by more than this share of their
norm."""

OnStep = Callable[[int, int], None]


class _Norms(FiniteCheck):
    """Also takes down the norm of every gradient, before it is clipped."""

    def __init__(self, config: OptimizerConfig) -> None:
        super().__init__(config, late=False)
        self.norms: list[float] = []

    def note(self, position: str, norm: Tensor, report: LossReport, evidence: StepEvidence) -> None:
        self.norms.append(float(norm))
        super().note(position, norm, report, evidence)


@dataclass(slots=True)
class _Seen:
    """What the steps showed."""

    terms: list[dict[str, float]] = field(default_factory=list)
    gradients: dict[str, float] = field(default_factory=dict)
    """The largest gradient that each trained parameter had in any step that was looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfit:
    """How far a batch was learned."""

    images: int
    ap: float
    steps: int
    losses: Mapping[str, tuple[float, float]]
    """Mean of each term over the first and the last steps."""
    rates: Mapping[str, tuple[float, float]]
    """Learning rate of each group of parameters, and by what share of their norm its weights moved."""
    without_gradient: tuple[str, ...]
    """Parts whose parameters never had a gradient other than 0."""
    norm: float
    """Of the gradient, before clipping: the median over the steps."""
    clip_norm: float

    @property
    def learned(self) -> bool:
        """Whether it reached the goal."""
        return self.ap >= GOAL

    def problems(self) -> list[str]:
        """What does not learn; empty where nothing stands out."""
        found = [
            f"{name} did not fall: {first:.4g} at first, {last:.4g} at the end"
            for name, (first, last) in self.losses.items()
            if last > FALLEN * first
        ]
        if self.without_gradient:
            found.append(f"no gradient in {', '.join(self.without_gradient)}: no loss that counts depends on them")
        found += [
            f"weights of the group {name} moved by {moved:.2g} of their norm, at a learning rate of {rate:.2g}"
            for name, (rate, moved) in self.rates.items()
            if moved < MOVED
        ]
        if 0 < self.clip_norm < self.norm / 10:
            found.append(
                f"the gradient, of norm {self.norm:.3g}, is cut down to optimizer.clip_norm {self.clip_norm:g}"
            )
        return found


def overfit_one_batch(config: RunConfig, on_step: OnStep | None = None) -> Overfit:
    """Learn the first images that have objects, as many as a step has; write nothing.

    Raises:
        SparseDetrError: what `train` would raise of these images and of the config.
    """
    prepare_environment()
    require_locations(config.data)
    config = _undisturbed(config)
    data = _one_batch(config)
    loop, _ = trial_loop(config, data, trial_device(config))
    before = {name: value.detach().clone() for name, value in loop.model.named_parameters()}
    batch = next(iter(data.train))
    norms = loop.update.check = _Norms(config.optimizer)
    seen, ap = _Seen(), 0.0
    while loop.step < STEPS and ap < GOAL:
        report = loop.train_step(batch)
        seen.terms.append({name: float(value) for name, value in report.terms.items()})
        if loop.step % LOOK == 0:
            _look_at_gradients(loop, seen)
            ap = loop.evaluate().get("ap", 0.0)
        if on_step is not None:
            on_step(loop.step, STEPS)
    return Overfit(
        images=len(data.val.index.images),
        ap=ap,
        steps=loop.step,
        losses=_losses(seen.terms),
        rates=_rates(loop, before),
        without_gradient=tuple(_parts(seen.gradients)),
        norm=statistics.median(norms.norms),
        clip_norm=config.optimizer.clip_norm,
    )


def _undisturbed(config: RunConfig) -> RunConfig:
    """Without what keeps a run from learning its images by heart."""
    data, model = config.data, config.model
    augment = AugmentConfig(short_sides=(data.short_side,), max_side=data.max_side, flip=0.0, crop=0.0)
    return replace(
        config,
        model=replace(model, dropout=0.0, backbone=replace(model.backbone, drop_path=0.0)),
        data=replace(data, augment=augment, broken_images="stop", loader_workers=0),
        # `drop_epoch` counts steps here, of which an epoch has one: the rate stays as it is.
        optimizer=replace(config.optimizer, schedule="step", drop_epoch=STEPS + 1),
        training=replace(
            config.training,
            workers=1,
            micro_batch=config.training.images_per_micro_batch,
            epochs=STEPS,
            ema_decay=0.0,
            not_finite="stop",
        ),
    )


def _one_batch(config: RunConfig) -> RunData:
    train, _ = read_annotations(config.data)
    with_objects = [image for image in train.images if _objects(image)]
    count = config.training.global_batch
    require(
        len(with_objects) >= count,
        f"training.global_batch: {count}, but only {len(with_objects)} training images have objects; give at most that",
    )
    index: CocoIndex = replace(train, images=tuple(with_objects[:count]))
    # Validated on the images that are learned.
    return data_of(replace(config, data=replace(config.data, val_images=config.data.train_images)), index, index)


def _objects(image: CocoImage) -> int:
    return int((~image.crowd).sum())


def _look_at_gradients(loop: TrainLoop, seen: _Seen) -> None:
    """The gradients are still those of the step before, clipped: 0 stays 0."""
    for name, parameter in loop.model.named_parameters():
        if parameter.requires_grad:
            largest = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
            seen.gradients[name] = max(seen.gradients.get(name, 0.0), largest)


def _losses(terms: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    return {name: (_mean(terms[:EDGE], name), _mean(terms[-EDGE:], name)) for name in terms[0]}


def _rates(loop: TrainLoop, before: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in loop.model.named_parameters()}
    found = {}
    for group in loop.optimizer.param_groups:
        old = [before[names[parameter]] for parameter in group["params"]]
        moved = [parameter.detach() - first for parameter, first in zip(group["params"], old, strict=True)]
        found[str(group["name"])] = (float(group["lr"]), float(_norm(moved) / _norm(old)))
    return found


def _mean(steps: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(tensors)


def _parts(gradients: Mapping[str, float]) -> Iterator[str]:
    """The highest parts of the model of which no parameter has a gradient."""
    dead = {name for name, largest in gradients.items() if largest == 0.0}
    told: set[str] = set()
    for name in gradients:
        if name not in dead or any(name.startswith(f"{part}.") for part in told):
            continue
        pieces = name.split(".")
        for end in range(1, len(pieces) + 1):
            part = ".".join(pieces[:end])
            below = [other for other in gradients if other == part or other.startswith(f"{part}.")]
            if all(other in dead for other in below):
                told.add(part)
                yield part
                break
