"""The op against what others do, in one process and interleaved: `python -m sparse_detr.benchmark.op`.

Contestants, all on their full path (softmax, locations, sampling): ours fused and unfused, ours in plain torch, the
`grid_sample` form that peers run where there is no GPU, and that of `transformers` where it is installed. Ratios are of
medians to `grid_sample`; an absolute time on a shared machine says little. The floor is the compulsory traffic (value,
offsets, logits and output once; with backward their gradients, too) over the copy bandwidth measured beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import backend, deformable_attention, fused_deformable_attention
from sparse_detr.ops.native import instruction_set, limit_instruction_set, native

SHAPES = ((100, 134), (50, 67), (25, 34), (13, 17))
"""Levels of a 3 x 800 x 1066 image at strides 8 to 64."""
HEADS, CHANNELS, POINTS = 8, 32, 4
QUERIES = {"dense": 17821, "sparse": 1782, "decoder": 300}
BASELINE = "grid_sample"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Contestant = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpBenchConfig:
    """What to measure."""

    queries: tuple[str, ...] = ("dense", "sparse", "decoder")
    """Which of dense (17821 queries), sparse (1782) and decoder (300)."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of torch; a GPU takes no notice."""
    types: tuple[str, ...] = ("float32", "bfloat16")
    """Types of the value; the baseline runs in float32."""
    repeats: int = 7
    """Rounds of all contestants; medians are taken over them."""
    instruction_set: str = ""
    """Widest vectors to use: base, avx2 or avx512; empty takes what the processor has."""
    device: str = "cpu"
    """cpu or cuda."""
    json: str = ""
    """File that gets the numbers; empty writes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One row of the table."""

    queries: str
    threads: int
    contestant: str
    dtype: str
    backward: bool
    """Whether the time is of forward and backward together."""
    milliseconds: float
    """Median."""
    fastest: float
    """Least, milliseconds."""
    ratio: float
    """Median of the baseline over this one's; NaN without a baseline."""
    over_floor: float
    """Times the compulsory traffic at copy bandwidth."""


def measure(config: OpBenchConfig) -> Iterator[Timing]:
    """Rows as they are measured."""
    if config.instruction_set:
        limit_instruction_set(config.instruction_set)
    before = torch.get_num_threads()
    try:
        for threads in config.threads:
            torch.set_num_threads(threads)
            bandwidth = copy_bandwidth(config.device)
            for name in config.queries:
                for backward in (False, True):
                    yield from _measure_case(config, name, threads, backward, bandwidth)
    finally:
        torch.set_num_threads(before)


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a copy of 64 MB; the best of several."""
    source = torch.zeros(1 << 24, device=device)
    target = torch.empty_like(source)
    times = [_timed(lambda: target.copy_(source), device) for _ in range(7)]
    return 2 * source.numel() * 4 / (min(times) / 1e3)


def by_grid_sample(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """The usual form: softmax, locations, then one `grid_sample` a level."""
    images, _, heads, _ = value.shape
    queries = offsets.shape[1]
    weights = logits.flatten(3).softmax(-1)
    grids = 2 * reference.locate(references, offsets, SHAPES) - 1
    samples = []
    for level, part in enumerate(value.split_with_sizes([h * w for h, w in SHAPES], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(images * heads, -1, *SHAPES[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False))
    shares = weights.transpose(1, 2).reshape(images * heads, 1, queries, -1)
    output = (torch.stack(samples, dim=-2).flatten(-2) * shares).sum(-1)
    return output.view(images, -1, queries).transpose(1, 2).contiguous()


def contestants(dtype: torch.dtype, first: bool) -> dict[str, Contestant]:
    """By name; those that only run in float32 are there for the first type alone."""

    def unfused(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(3).softmax(-1).view_as(logits)
        return deformable_attention(value, SHAPES, reference.locate(references, offsets, SHAPES), weights)

    found: dict[str, Contestant] = {
        "ours": lambda v, r, o, w: fused_deformable_attention(v, SHAPES, r, o, w),
        "ours unfused": unfused,
    }
    if first:
        found["plain torch"] = lambda v, r, o, w: reference.fused_deformable_attention(v, SHAPES, r, o, w)
        found[BASELINE] = by_grid_sample
        if theirs := _transformers():
            found["transformers"] = theirs
    return found


def _transformers() -> Contestant | None:
    """The sampling of Hugging Face's Deformable DETR, called as it comes, with softmax and locations before it."""
    try:
        from transformers.models.deformable_detr.modeling_deformable_detr import (
            MultiScaleDeformableAttention,
        )
    except ImportError:
        return None
    sample, sizes = MultiScaleDeformableAttention(), torch.tensor(SHAPES)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))

    def theirs(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        weights = logits.flatten(3).softmax(-1).view_as(logits)
        locations = reference.locate(references, offsets, SHAPES)
        output: Tensor = sample(value, sizes, list(SHAPES), starts, locations, weights, 64)
        return output

    return theirs


def inputs(queries: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """value, references, offsets of about 3 cells, logits; the queries are tokens, in no order where they are few."""
    generator = torch.Generator().manual_seed(0)
    centres = []
    for height, width in SHAPES:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        centres.append(torch.stack((x, y), dim=-1).flatten(0, 1))
    tokens = torch.cat(centres)
    chosen = tokens if queries == len(tokens) else tokens[torch.randperm(len(tokens), generator=generator)[:queries]]
    references = chosen[None, :, None].expand(1, queries, len(SHAPES), 2).contiguous()
    axes = (1, queries, HEADS, len(SHAPES), POINTS)
    value = torch.randn(1, len(tokens), HEADS, CHANNELS, generator=generator)
    offsets, logits = torch.randn(*axes, 2, generator=generator) * 3, torch.randn(*axes, generator=generator)
    return value.to(device), references.to(device), offsets.to(device), logits.to(device)


def _measure_case(config: OpBenchConfig, name: str, threads: int, backward: bool, bandwidth: float) -> Iterator[Timing]:
    value, references, offsets, logits = inputs(QUERIES[name], config.device)
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for kind in config.types:
        leaves = [tensor.to(TYPES[kind]).requires_grad_(backward) for tensor in (value, offsets, logits)]
        for label, contestant in contestants(TYPES[kind], kind == config.types[0]).items():
            runs[label, kind] = _run(contestant, leaves, references, backward)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for repeat in range(config.repeats + 1):
        for key, run in runs.items():
            taken = _timed(run, config.device)
            if repeat:  # the first round warms up
                times[key].append(taken)
    medians = {key: statistics.median(values) for key, values in times.items()}
    baseline = medians.get((BASELINE, config.types[0]), float("nan"))
    for (label, kind), values in times.items():
        numbers = value.numel() + offsets.numel() + logits.numel() + QUERIES[name] * HEADS * CHANNELS
        floor = numbers * TYPES[kind].itemsize * (3 if backward else 1) / bandwidth * 1e3
        median = medians[label, kind]
        yield Timing(
            queries=name,
            threads=threads,
            contestant=label,
            dtype=kind,
            backward=backward,
            milliseconds=median,
            fastest=min(values),
            ratio=baseline / median,
            over_floor=median / floor,
        )


def _run(contestant: Contestant, leaves: list[Tensor], references: Tensor, backward: bool) -> Callable[[], object]:
    def forward() -> Tensor:
        return contestant(leaves[0], references, leaves[1], leaves[2])

    if not backward:
        return torch.no_grad()(forward)
    direction = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), leaves, direction)


def _timed(run: Callable[[], object], device: str) -> float:
    """Milliseconds: of the device where there is one, by events."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def machine(config: OpBenchConfig) -> dict[str, object]:
    """What a figure has to say beside it."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "backend": backend(config.device),
        "instruction_set": config.instruction_set or instruction_set(),
        "build": native().build,
        "torch": torch.__version__,
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if config.device == "cuda" else "",
    }


@contextmanager
def _writer(path: str) -> Iterator[list[Timing]]:
    rows: list[Timing] = []
    yield rows
    if path:
        Path(path).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def run_bench(config: OpBenchConfig, write: Callable[[str], object]) -> None:
    """Measure, and write a line for each row to `write`."""
    write(" | ".join(f"{key} {value}" for key, value in machine(config).items() if value) + "\n")
    header = ("queries", "threads", "pass", "contestant", "type", "ms", "fastest", "ratio", "x floor")
    write("{:8} {:>7} {:9} {:13} {:9} {:>9} {:>9} {:>7} {:>8}\n".format(*header))
    with _writer(config.json) as rows:
        for row in measure(config):
            rows.append(row)
            which = "fwd+bwd" if row.backward else "forward"
            write(
                f"{row.queries:8} {row.threads:7} {which:9} {row.contestant:13} {row.dtype:9} {row.milliseconds:9.2f} "
                f"{row.fastest:9.2f} {row.ratio:7.1f} {row.over_floor:8.1f}\n"
            )


def bench_verb(config: OpBenchConfig) -> int:
    """Measure, and show the table; returns the exit code."""
    run_bench(config, sys.stdout.write)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The options of OpBenchConfig, read without tyro."""
    parser = argparse.ArgumentParser(prog="python -m sparse_detr.benchmark.op", description=__doc__)
    default = OpBenchConfig()
    parser.add_argument("--queries", nargs="+", choices=tuple(QUERIES), default=default.queries)
    parser.add_argument("--threads", nargs="+", type=int, default=default.threads)
    parser.add_argument("--types", nargs="+", choices=tuple(TYPES), default=default.types)
    parser.add_argument("--repeats", type=int, default=default.repeats)
    parser.add_argument("--instruction-set", default=default.instruction_set)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default.device)
    parser.add_argument("--json", default=default.json)
    options = vars(parser.parse_args(arguments))
    for name in ("queries", "threads", "types"):
        options[name] = tuple(options[name])
    return bench_verb(OpBenchConfig(**options))


if __name__ == "__main__":
    sys.exit(main())
