"""`sparse-detr bench op`, and the same without tyro for a machine with torch, numpy and jaxtyping."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pipelines.bench.op.config import OpBenchConfig
from pipelines.bench.op.run import run_bench
from sparse_detr.errors import SparseDetrError


def bench_op(config: OpBenchConfig) -> int:
    """Measure, and show the table; returns the exit code."""
    run_bench(config, _show, _overwrite if sys.stderr.isatty() else lambda _text: None)
    return 0


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _overwrite(text: str) -> None:
    """One line of the terminal, for what goes on."""
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The options of OpBenchConfig, read without tyro; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.bench.op", description="Measure the op.")
    parser.add_argument("--queries", nargs="*", help="dense, sparse, decoder; default: all three")
    parser.add_argument("--threads", nargs="*", type=int, help="default: 1 2; a GPU takes no notice")
    parser.add_argument("--types", nargs="*", help="float32, bfloat16, float16; default: all that the op has there")
    parser.add_argument("--repeats", type=int, help="rounds; default: 7")
    parser.add_argument("--instruction-set", help="base, avx2 or avx512; default: what the processor has")
    parser.add_argument("--device", help="cpu or cuda; default: cpu")
    parser.add_argument("--json", help="file that gets the numbers")
    named = {key: value for key, value in vars(parser.parse_args(arguments)).items() if value is not None}
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in named.items()}
    try:
        return bench_op(OpBenchConfig(**options))
    except SparseDetrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        return 130
