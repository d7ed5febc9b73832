"""`sparse-detr bench table | trace | growth`: tables in Markdown on stdout."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from pipelines.bench.model import growth, published, trace
from pipelines.bench.model.config import GrowthConfig, TableConfig, TraceConfig
from pipelines.bench.model.encoder_run import EncoderRun
from pipelines.bench.model.growth_plot import draw
from sparse_detr.model.config import ModelConfig


def bench_table(_config: TableConfig) -> int:
    """Write the published table beside the formula, and what the authors' code runs beyond ours at keep ratio 0.1."""
    sys.stdout.write(f"{published.table()}\n\n{published.needless_table(ModelConfig(), *published.SPARSE_SIZE)}\n")
    return 0


def bench_trace(_config: TraceConfig) -> int:
    """Write what really runs in a forward pass."""
    sys.stdout.write(trace.table() + "\n")
    return 0


def bench_growth(config: GrowthConfig) -> int:
    """Measure what is not known yet, draw, and write the table."""
    measured = measured_once(config.results)
    draw(measured, config.plot)
    sys.stdout.write(growth.table(measured) + "\n")
    return 0


def measured_once(file: Path) -> dict[str, dict[int, EncoderRun]]:
    """Measurements of the file, with those that it lacks measured and written to it."""
    content = json.loads(file.read_text()) if file.exists() else {}
    known = {name: {int(side): EncoderRun(**run) for side, run in runs.items()} for name, runs in content.items()}
    measured = growth.measure(known)
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: {side: asdict(run) for side, run in runs.items()} for name, runs in measured.items()}
    file.write_text(json.dumps(plain, indent=2))
    return measured
