"""Latency of a model on one machine: the median of some runs, with everything that the number depends on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from sparse_detr.errors import require
from sparse_detr.model.base import Detector
from sparse_detr.ops.deformable_attention import backend
from sparse_detr.records import ImageBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyConfig:
    """Options of a measurement."""

    runs: int = 5
    """Timed runs; the median is what counts."""
    warm_up: int = 1
    """Runs before them, which are not timed."""
    batch: int = 1
    """Images of a run, all of one size."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` takes a GPU where there is one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs the model under autocast."""
    threads: int | None = None
    """Torch threads on the CPU; as torch has it by default."""

    def __post_init__(self) -> None:
        for name in ("runs", "batch"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}; give at least 1")
        require(self.warm_up >= 0, f"warm_up: {self.warm_up}; give 0 or more")
        require(self.threads is None or self.threads >= 1, f"threads: {self.threads}; give at least 1, or leave it out")
        require(
            self.precision in ("float32", "bfloat16"),
            f"precision: {self.precision!r} is not known; choose float32 or bfloat16",
        )
        require(self.device in ("auto", "cpu", "gpu"), f"device: {self.device!r}; choose auto, cpu or gpu")

    def torch_device(self) -> torch.device:
        """The device to run on.

        Raises:
            ConfigError: a GPU is asked for and there is none.
        """
        found = torch.cuda.is_available()
        require(self.device != "gpu" or found, "device: 'gpu', but torch finds no GPU; give cpu or leave it out")
        return torch.device("cuda" if found and self.device != "cpu" else "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A measured time, and all that it depends on."""

    median: float
    """Milliseconds for the whole batch, transfers and post-processing left out."""
    fastest: float
    slowest: float
    runs: int
    batch: int
    machine: str
    """Name of the GPU, or of the processor with the number of torch's threads."""
    precision: str
    torch: str
    """Version."""
    kernel: str
    """Which deformable-attention kernel ran."""


def measure_latency(
    model: Detector, height: int, width: int, config: LatencyConfig, keep_ratio: float | None = None
) -> Latency:
    """Time forward passes on random images without padding. The model comes back in evaluation mode on the device.

    Raises:
        ConfigError: there is no GPU, or the model refuses the keep ratio.
    """
    device = config.torch_device()
    model.eval().to(device)
    images = [torch.randn(3, height, width) for _ in range(config.batch)]
    batch = ImageBatch.from_list(images).to(device)

    def run() -> None:
        model(batch, keep_ratio)

    half = config.precision == "bfloat16"
    with _threads(config.threads), torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        for _ in range(config.warm_up):
            run()
        timer = _milliseconds_of_gpu if device.type == "cuda" else _milliseconds
        times = [timer(run) for _ in range(config.runs)]
        machine = machine_name(device)
    return Latency(
        median=median(times), fastest=min(times), slowest=max(times), runs=config.runs, batch=config.batch,
        machine=machine, precision=config.precision, torch=torch.__version__, kernel=backend(),
    )  # fmt: skip


def machine_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{_processor()}, {count} {'thread' if count == 1 else 'threads'}"


def _processor() -> str:
    # Linux keeps the name here; `platform` knows it elsewhere.
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _milliseconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000


def _milliseconds_of_gpu(run: Callable[[], None]) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch with `count` threads, and as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
