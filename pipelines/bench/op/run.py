"""The op against what others do, in one process and interleaved.

Every implementation computes softmax, locations and sampling. Ratios are of medians within the run; an absolute time on
a shared machine says little, so the table shows them on a GPU alone, the JSON always. The floor is the traffic that no
implementation avoids, over the speed of a copy measured beside it: on a GPU its share is that of the roofline.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipelines.bench.op.config import OpBenchConfig
from pipelines.bench.op.implementations import Workload
from pipelines.bench.op.measure import Bench, Say, Timing, open_bench
from pipelines.bench.op.table import columns, header, legend, line
from sparse_detr.cost.latency import machine_name
from sparse_detr.errors import ConfigError
from sparse_detr.ops.deformable_attention import backend
from sparse_detr.ops.native import instruction_set, limit_instruction_set, native, native_cuda


def run_bench(config: OpBenchConfig, write: Say, progress: Say, workload: Workload | None = None) -> list[Timing]:
    """Measure.

    Args:
        write: gets the table's text, a line for each row as soon as it is measured.
        progress: is told what is being measured, and "" before something is written.
        workload: other sizes than those of a real image.

    Raises:
        ConfigError: the machine has no such device or instruction set, or the JSON cannot be written there. Nothing was
            measured then.
    """
    config.check_machine()
    with _limited(config.instruction_set):
        bench = open_bench(config, workload or Workload())
        described = machine(config)
        write("\n".join(f"{key}: {value}" for key, value in described.items() if value) + "\n")
        for name, reason in bench.field.left_out.items():
            write(f"{name} is left out: {reason}\n")
        table = columns(bench)
        write(f"\n{legend(bench)}\n{header(table)}")
        rows: list[Timing] = []
        for row in bench.rows(progress):
            progress("")
            write(("\n" if rows and _case(rows[-1]) != _case(row) else "") + line(table, row))
            rows.append(row)
    if config.json:
        content = {"machine": described, **record(bench, rows)}
        # Not by sparse_detr.storage, which needs pyarrow, and this runs without it. Whole or not at all.
        part = Path(f"{config.json}.part")
        part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        part.replace(config.json)
    return rows


def _case(row: Timing) -> tuple[str, bool]:
    return row.queries, row.backward


@contextmanager
def _limited(name: str) -> Iterator[None]:
    """Vectors no wider than those of an instruction set; afterwards as before."""
    before = instruction_set()
    if name:
        try:
            limit_instruction_set(name)
        except ConfigError as error:
            here = f"up to {before} is here" if before else "the compiled op is not loaded"
            raise ConfigError(f"instruction_set: {name!r}, but {here}; give a narrower one, or leave it out") from error
    try:
        yield
    finally:
        if name:
            limit_instruction_set(before)


def machine(config: OpBenchConfig) -> dict[str, Any]:
    """Machine and build, which every figure needs beside it."""
    gpu = config.device == "cuda"
    device = config.torch_device()
    library = native_cuda() if gpu else native()
    described: dict[str, Any] = {
        "op": backend(config.device),
        "build": library.build,
        "instruction set": "" if gpu else instruction_set(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": machine_name(device).rsplit(", ", 1)[0] if not gpu else machine_name(device),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
    if gpu:
        properties = torch.cuda.get_device_properties(device)
        described["compute capability"] = f"{properties.major}.{properties.minor}"
        described["L2 cache"] = f"{properties.L2_cache_size / 2**20:.0f} MiB"
        described["cuda"] = torch.version.cuda
    return described


def record(bench: Bench, rows: Sequence[Timing]) -> dict[str, Any]:
    """All but the machine, for JSON."""
    return {
        "config": {**asdict(bench.config), "types": bench.config.resolved_types, "threads": bench.threads},
        "workload": asdict(bench.workload),
        "baseline": bench.field.baseline,
        "left_out": dict(bench.field.left_out),
        "rows": [asdict(row) for row in rows],
    }
