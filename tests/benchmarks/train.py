"""Benchmarks of training, for docs/training.md; every number is a ratio within one run.

python tests/benchmarks/train.py checkpoints --recipe tiny r50_rho10
python tests/benchmarks/train.py memory --recipe r50_rho10 --side 512
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import torch

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.recipes.registry import get_recipe
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.checkpoint_store import CheckpointStore
from pipelines.train.engine.checkpointer import Checkpointer
from pipelines.train.engine.loop import TrainLoop
from pipelines.train.engine.trial import peak_memory
from sparse_detr.data.shapes import ShapesConfig, write_shapes
from sparse_detr.storage.location import locate


def recipe_on_shapes(name: str, folder: Path, side: int, *, images: int = 64) -> RunConfig:
    """A recipe on pictures of so many pixels, two images a step; its backbone starts at random."""
    write_shapes(locate(folder), ShapesConfig(size=side, max_objects=3), {"train": images, "val": 2})
    changes = {
        "data.train_annotations": str(folder / "train.json"),
        "data.train_images": str(folder / "train"),
        "data.val_annotations": str(folder / "val.json"),
        "data.val_images": str(folder / "val"),
        "data.cache": "pixels",
        "data.loader_workers": 0,
        "data.short_side": side,
        "data.max_side": side,
        "data.augment.short_sides": [side],
        "data.augment.max_side": side,
        "data.augment.crop": 0.0,
        "training.global_batch": 2,
        "training.workers": 1,
        "training.init_backbone": None,
    }
    return override(get_recipe(name), changes)


def checkpoints(arguments: argparse.Namespace) -> None:
    """What one checkpoint costs: the stand-still of the loop, all processor time that it takes, and the longer time of
    steps beside it, where stretches of steps with and without one take turns."""
    for name in arguments.recipe:
        with tempfile.TemporaryDirectory() as folder:
            loop = build_loop(recipe_on_shapes(name, Path(folder, "shapes"), arguments.side))
            store = CheckpointStore(folder=locate(Path(folder, "checkpoints")))
            checkpointer = Checkpointer(store, loop.config.training)
            stretch = steps_for(loop, arguments.seconds)
            still, work, longer = list[float](), list[float](), list[float]()
            for _ in range(arguments.rounds):
                alone = stretch()
                began = time.thread_time()
                checkpointer.take(loop.snapshot())
                still.append(time.thread_time() - began)
                beside = stretch()
                while checkpointer.busy:
                    time.sleep(0.01)
                longer.append(beside - alone)
                work.append(_processor_time(loop, store))
            size = sum(file.stat().st_size for file in Path(folder, "checkpoints").rglob("*") if file.is_file())
        print(
            f"{name}: {size / 2**20:.0f} MiB; the loop stands still for {statistics.median(still):.3f} s of its "
            f"processor time, of {statistics.median(work):.3f} s in all; steps of {arguments.seconds:g} s take "
            f"{statistics.median(longer):.3f} s longer ({min(longer):.3f} to {max(longer):.3f}). One a minute costs "
            f"{statistics.median(still) / 60:.2%}, and at most {statistics.median(work) / 60:.2%} where no core is free"
        )


def _processor_time(loop: TrainLoop, store: CheckpointStore) -> float:
    """Seconds of all threads for one checkpoint, with nothing beside it: what it costs at most."""
    began = time.process_time()
    store.write(loop.snapshot())
    return time.process_time() - began


PARTS: tuple[tuple[str, ...], ...] = ((), ("decoder",), ("encoder",), ("backbone",), ("backbone", "encoder", "decoder"))
"""Settings of `training.activation_checkpointing` that are compared."""


def memory(arguments: argparse.Namespace) -> None:
    """The most memory that a training takes, and the time of its steps, with parts that compute their layers again."""
    for name in arguments.recipe:
        with tempfile.TemporaryDirectory() as folder:
            config = recipe_on_shapes(name, Path(folder, "shapes"), arguments.side)
            first = (1.0, 1.0)
            for parts in PARTS:
                run = override(config, {"training.activation_checkpointing": list(parts)})
                # A process each: what one gave back to the allocator would be in the next one's peak.
                spawn = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    found = pool.submit(_peak_and_seconds, run, arguments.threads, arguments.rounds).result()
                first = found if not parts else first
                print(
                    f"{name}, {', '.join(parts) or 'nothing'} again: {found[0] / 2**20:.0f} MiB "
                    f"({found[0] / first[0]:.0%}), {found[1]:.3g} s a step ({found[1] / first[1]:.0%})"
                )


def _peak_and_seconds(config: RunConfig, threads: int, rounds: int) -> tuple[float, float]:
    """Bytes that steps take beyond process, weights, gradients and moments, and the median time of a step."""
    torch.set_num_threads(threads)
    loop = build_loop(config)
    loop.network.train()
    batches = list(itertools.islice(loop.data.train, 4))
    before = psutil.Process().memory_info().rss
    loop.train_step(batches[0])
    seconds = []
    with peak_memory(loop.device) as peak:
        for number in range(rounds):
            began = time.perf_counter()
            loop.train_step(batches[number % len(batches)])
            seconds.append(time.perf_counter() - began)
    trained = sum(each.nbytes for each in loop.model.parameters() if each.requires_grad)
    return peak.bytes - before - 3 * trained, statistics.median(seconds)


def steps_for(loop: TrainLoop, seconds: float) -> Callable[[], float]:
    """A function that times as many steps as took so long at first."""
    batches = list(loop.data.train)
    loop.network.train()
    loop.train_step(batches[0])
    began = time.perf_counter()
    loop.train_step(batches[1])
    count = max(2, round(seconds / (time.perf_counter() - began)))

    def run() -> float:
        began = time.perf_counter()
        for index in range(count):
            loop.train_step(batches[index % len(batches)])
        return time.perf_counter() - began

    return run


def main() -> None:
    """Run the benchmark that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("checkpoints", help=checkpoints.__doc__)
    command.add_argument("--recipe", nargs="+", default=["tiny", "r50_rho10"])
    command.add_argument("--side", type=int, default=128, help="pixels of a picture")
    command.add_argument("--seconds", type=float, default=8.0, help="length of a stretch")
    command.add_argument("--rounds", type=int, default=8)
    command.add_argument("--threads", type=int, default=1)
    command.set_defaults(run=checkpoints)
    command = commands.add_parser("memory", help=memory.__doc__)
    command.add_argument("--recipe", nargs="+", default=["r50_rho10"])
    command.add_argument("--side", type=int, default=512, help="pixels of a picture")
    command.add_argument("--rounds", type=int, default=4, help="steps that are timed")
    command.add_argument("--threads", type=int, default=2)
    command.set_defaults(run=memory)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
