"""Options of the benchmark of the op."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from sparse_detr.errors import require

Queries = Literal["dense", "sparse", "decoder"]
Kind = Literal["float32", "bfloat16", "float16"]
InstructionSet = Literal["", "base", "avx2", "avx512"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpBenchConfig:
    """Queries, threads, types and device to measure."""

    queries: tuple[Queries, ...] = ("dense", "sparse", "decoder")
    """Which of dense (17821 queries), sparse (1782) and decoder (300)."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of torch; a GPU takes no notice."""
    types: tuple[Kind, ...] = ()
    """Types of the value for ours, peers run in float32; none named: all that the op has on the device."""
    repeats: int = 7
    """Rounds of all implementations; medians are taken over them."""
    instruction_set: InstructionSet = ""
    """Widest vectors of the CPU to use; empty takes what the processor has."""
    device: Device = "cpu"
    """Device to measure on."""
    json: str = ""
    """File that gets the numbers when all are measured; empty writes none."""

    def __post_init__(self) -> None:
        for field, kind in (("queries", Queries), ("types", Kind)):
            for name in getattr(self, field):
                require(name in get_args(kind), f"{field}: {name!r} is not known; choose of {_listed(kind)}")
        for field, kind in (("device", Device), ("instruction_set", InstructionSet)):
            name = getattr(self, field)
            require(name in get_args(kind), f"{field}: {name!r} is not known; choose one of {_listed(kind)}")
        require(len(self.queries) > 0, f"queries: none named; choose of {_listed(Queries)}")
        require(len(self.threads) > 0, "threads: none named; give numbers such as 1 2")
        for count in self.threads:
            require(count >= 1, f"threads: {count}; give at least 1")
        require(self.repeats >= 1, f"repeats: {self.repeats}; give at least 1")
        wrong = self.device == "cpu" and "float16" in self.types
        require(
            not wrong, "types: float16 with device cpu, where the op has none; give float32, bfloat16 or device cuda"
        )

    @property
    def resolved_types(self) -> tuple[Kind, ...]:
        """Those named, or all that the op has on the device."""
        return self.types or (("float32", "bfloat16", "float16") if self.device == "cuda" else ("float32", "bfloat16"))

    def torch_device(self) -> torch.device:
        """The device; of several GPUs the current one."""
        return torch.device("cuda", torch.cuda.current_device()) if self.device == "cuda" else torch.device("cpu")

    def check_machine(self) -> None:
        """Refuse, before anything is measured, what this machine cannot do.

        Raises:
            ConfigError: there is no GPU for `device`, or `json` cannot be written.
        """
        without = f"device: cuda, but torch {torch.__version__} sees no GPU; give cpu, or install a CUDA build of torch"
        require(self.device == "cpu" or torch.cuda.is_available(), without)
        if self.json:
            target = Path(self.json).resolve()
            folder, new = target.parent, target.is_file() or not target.exists()
            require(folder.is_dir(), f"json: {self.json!r}, but there is no folder {folder}; make it, or give another")
            require(new, f"json: {self.json!r} is a folder or a device; give the name of a file")
            writable = os.access(folder, os.W_OK | os.X_OK)
            require(writable, f"json: {self.json!r}, but {folder} cannot be written to; give another")


def _listed(kind: object) -> str:
    return ", ".join(name for name in get_args(kind) if name)
