"""A training loop that is only tried, in this process: it keeps nothing, and its memory is measured."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.batches import RunData
from pipelines.train.engine.build import with_classes
from pipelines.train.engine.finite import FiniteCheck
from pipelines.train.engine.initial_weights import initial_model
from pipelines.train.engine.loop import TrainLoop
from sparse_detr.losses.criterion import Criterion
from sparse_detr.ops.self_check import self_test
from sparse_detr.weights.state import LoadReport

_CLEAR = Path("/proc/self/clear_refs")


def trial_device(config: RunConfig) -> torch.device:
    """The device of a worker where this machine has one, otherwise its CPU; with as many threads as a worker gets."""
    torch.set_num_threads(config.training.cpus_per_worker)
    device = torch.device("cuda" if config.training.use_gpu and torch.cuda.is_available() else "cpu")
    self_test(device.type)
    return device


def trial_loop(config: RunConfig, data: RunData, device: torch.device) -> tuple[TrainLoop, LoadReport]:
    """A loop of one rank that writes nothing, also where a step is not finite; and where its weights come from."""
    config = with_classes(config, data.classes)
    model, weights = initial_model(config, data.classes)
    loop = TrainLoop(config, model, Criterion(config.loss), data, device=device)
    loop.update.check = FiniteCheck(config.optimizer, late=False)
    loop.network.train()
    return loop, weights


class Peak:
    """The most memory that was in use at once."""

    bytes = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures while it is open: of a GPU what torch allocates, otherwise all of this process."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")  # Linux then counts VmHWM from here
    try:
        yield peak
    finally:
        peak.bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_peak()


def _resident_peak() -> int:
    if _CLEAR.exists():
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    # Since the process began; in bytes on a Mac, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
