"""Runs a step again whose numbers were not finite, as a training kept it, and finds where they come from. No Ray."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipelines.train.engine.evidence import KeptMicroBatch, KeptStep, read_step
from pipelines.train.engine.freeze import freeze
from pipelines.train.engine.origin import Origin, OriginTracer
from pipelines.train.engine.ranks import Ranks
from pipelines.train.engine.step import TrainStep
from sparse_detr.detector import SparseDetr
from sparse_detr.losses.criterion import Criterion
from sparse_detr.weights.state import load_state


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedMicroBatch:
    """One micro-batch, run again."""

    number: int
    image_ids: tuple[int, ...]
    same: bool
    """Whether every loss term is that of the training, to the last bit."""
    bad_terms: tuple[str, ...]
    """Loss terms that are not finite."""
    bad_gradients: tuple[str, ...]
    """Parameters whose gradient is not finite, in the model's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A step that was run again."""

    step: int
    """From 0, over the whole run."""
    why: str
    """As the training said it."""
    device: str
    """Where it ran now."""
    micro_batches: tuple[ReplayedMicroBatch, ...]
    norm: float
    """Of the gradient of them all."""
    origin: Origin | None
    """Where the first number that is not finite comes from; None where no micro-batch alone has any."""
    phase: str
    """`forward`, `backward`, or `sum` where only the gradients of all together are not finite."""

    @property
    def reproduced(self) -> bool:
        """Whether it broke again, with the losses that it had."""
        same = all(each.same for each in self.micro_batches)
        return same and (not math.isfinite(self.norm) or any(each.bad_terms for each in self.micro_batches))


def replay(uri: str) -> Replay:
    """Run a kept step again, on the kind of device that it ran on where there is one.

    Raises:
        CheckpointError: nothing that a training keeps, or not whole.
        StorageError: it cannot be read.
    """
    kept = read_step(uri)
    device = torch.device("cuda" if kept.device == "cuda" and torch.cuda.is_available() else "cpu")
    with _threads(kept.threads):
        step = _step(kept, device)
        done = [_again(step, kept, each) for each in kept.micro_batches]
        norm = _norm(step, kept)
        guilty = next((each for each in done if each.bad_terms or each.bad_gradients), None)
        origin = None
        if guilty is not None:
            origin = _origin(step, kept, kept.micro_batches[guilty.number])
    phase = "sum" if guilty is None else "forward" if guilty.bad_terms else "backward"
    return Replay(
        step=kept.step,
        why=kept.why,
        device=device.type,
        micro_batches=tuple(done),
        norm=norm,
        origin=origin,
        phase=phase,
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many as the training had: sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step(kept: KeptStep, device: torch.device) -> TrainStep:
    # Layers that are computed twice give the same numbers and would show up twice.
    config = replace(kept.config, training=replace(kept.config.training, activation_checkpointing=(), ema_decay=0.0))
    model = SparseDetr(config.model)
    load_state(model, dict(kept.weights), "replay: model.safetensors")
    freeze(model, config.optimizer.freeze)
    step = TrainStep(config, model.train(), Criterion(config.loss), Ranks(), device)
    step.begin(kept.step)
    return step


def _again(step: TrainStep, kept: KeptStep, micro_batch: KeptMicroBatch) -> ReplayedMicroBatch:
    step.optimizer.zero_grad(set_to_none=True)
    report = step.accumulate(micro_batch.number, micro_batch.batch, kept.boxes)
    return ReplayedMicroBatch(
        number=micro_batch.number,
        image_ids=micro_batch.batch.image_ids,
        same=_same(report.terms, micro_batch.terms),
        bad_terms=tuple(name for name, value in report.terms.items() if not bool(value.isfinite())),
        bad_gradients=tuple(name for name, gradient in _gradients(step.model) if not bool(gradient.isfinite().all())),
    )


def _same(now: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> bool:
    """Bit by bit: a NaN equals a NaN."""
    return list(now) == list(then) and all(
        now[name].detach().float().cpu().view(torch.int32).equal(then[name].view(torch.int32)) for name in then
    )


def _gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


def _norm(step: TrainStep, kept: KeptStep) -> float:
    step.optimizer.zero_grad(set_to_none=True)
    for each in kept.micro_batches:
        step.accumulate(each.number, each.batch, kept.boxes)
    return float(nn.utils.get_total_norm([gradient for _, gradient in _gradients(step.model)]))


def _origin(step: TrainStep, kept: KeptStep, micro_batch: KeptMicroBatch) -> Origin | None:
    """Run the micro-batch once more under the tracer."""
    step.optimizer.zero_grad(set_to_none=True)
    model, batch = step.model, micro_batch.batch.to(next(step.model.parameters()).device)
    given = {f"the weights {name}": value.detach() for name, value in model.state_dict().items()
             if value.is_floating_point()}  # fmt: skip
    given["the images' pixels"] = batch.images.pixels
    given |= {
        f"the boxes of image {name}": each.boxes for name, each in zip(batch.image_ids, batch.targets, strict=True)
    }
    with OriginTracer(model, given) as tracer:
        report = step.accumulate(micro_batch.number, batch, kept.boxes)
    bad = [report.total] if not bool(report.total.isfinite()) else [gradient for _, gradient in _gradients(model)]
    return tracer.of(bad)
