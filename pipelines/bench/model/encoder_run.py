"""One encoder layer on tokens of an image, run in a process of its own under a memory limit.

So that running out of memory is seen as it happens, and the peak is that of this layer alone.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import require
from sparse_detr.model.build import build_encoder
from sparse_detr.model.config import ModelConfig
from sparse_detr.model.encoder import Encoder
from sparse_detr.model.token_selection import select_tokens
from sparse_detr.records import FeaturePyramid, Shapes, TokenSelection

_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRun:
    """Time and memory that one layer of an encoder took for one image."""

    seconds: float | None
    """Processor time on one thread, which other work on the machine hardly changes; None where memory did not
    suffice."""
    peak_bytes: int | None
    """Largest resident memory of the process, above that before the run; None where memory did not suffice."""
    tokens: int

    @property
    def fits(self) -> bool:
        """Whether memory sufficed."""
        return self.seconds is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    config: ModelConfig
    side: int
    keep_map: bool
    limit_bytes: int


def run_encoder_layer(config: ModelConfig, side: int, *, limit_bytes: int, keep_map: bool = False) -> EncoderRun:
    """Run the first encoder layer of a model on random tokens of a square image, without gradients, in float32.

    Args:
        side: of the image, pixels.
        limit_bytes: address space that the layer may take beyond what the process has before it.
        keep_map: full attention holds the map of all pairs of tokens, as DETR's code does; otherwise torch's fused
            kernel, which holds none, may run.

    Raises:
        RuntimeError: the process ended for another reason than memory; with what it said.
    """
    require(side >= 32, f"side: {side}; give pixels, at least 32")
    task = _Task(config=config, side=side, keep_map=keep_map, limit_bytes=limit_bytes)
    command = [sys.executable, "-m", "pipelines.bench.model.encoder_run"]
    done = subprocess.run(command, input=json.dumps(to_dict(task)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return EncoderRun(**json.loads(done.stdout.splitlines()[-1]))


def token_shapes(config: ModelConfig, side: int) -> Shapes:
    """(height, width) of every level for a square image."""
    finest = 3 if config.levels > 1 else 5
    sides = [-(-side // 2 ** (finest + level)) for level in range(config.levels)]
    return tuple((cells, cells) for cells in sides)


def _measure(task: _Task) -> EncoderRun:
    """Set the limit, run, and look at the peak."""
    torch.set_num_threads(1)
    config = replace(task.config, encoder_layers=1, encoder_auxiliary_loss=False)
    encoder = build_encoder(config).eval()
    pyramid, selection = _tokens(config, task.side)
    tokens = pyramid.tokens.shape[1]
    _run(encoder, *_tokens(config, 64), keep_map=task.keep_map)
    start = _status("VmRSS")
    most = _status("VmSize") * _KIB + task.limit_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        seconds = _run(encoder, pyramid, selection, keep_map=task.keep_map)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        return EncoderRun(seconds=None, peak_bytes=None, tokens=tokens)
    return EncoderRun(seconds=seconds, peak_bytes=(_status("VmHWM") - start) * _KIB, tokens=tokens)


def _run(encoder: Encoder, pyramid: FeaturePyramid, selection: TokenSelection | None, *, keep_map: bool) -> float:
    boxes = torch.zeros(1, pyramid.tokens.shape[1], 4)
    started = time.process_time()
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH) if keep_map else nullcontext():
        encoder(pyramid, selection, boxes, False)
    return time.process_time() - started


def _tokens(config: ModelConfig, side: int) -> tuple[FeaturePyramid, TokenSelection | None]:
    shapes = token_shapes(config, side)
    count = sum(rows * columns for rows, columns in shapes)
    padding = torch.zeros(1, count, dtype=torch.bool)
    pyramid = FeaturePyramid(
        tokens=torch.randn(1, count, config.channels),
        position=torch.randn(1, count, config.channels),
        padding=padding,
        valid_ratios=torch.ones(1, config.levels, 2),
        shapes=shapes,
    )
    return pyramid, select_tokens(torch.randn(1, count), padding, config.keep_ratio) if config.sparse else None


def _status(field: str) -> int:
    """A number of this process from Linux, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_measure(from_dict(_Task, json.load(sys.stdin))))))
