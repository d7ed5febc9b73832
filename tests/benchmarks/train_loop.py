"""The training loop within Ray Train against the same loop in plain processes, for docs/training.md; ratios of one run.

python -m tests.benchmarks.train_loop --recipe tiny --workers 1 2 --rounds 3
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipelines.cluster.session import ray_session
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train.engine.build import build_loop
from pipelines.train.run import train
from tests.benchmarks.train import recipe_on_shapes

EPOCHS = 4
"""The first is not counted: memory is laid out and kernels are chosen in it."""


def speed_of(history: Sequence[Any]) -> float:
    """Images a second of all epochs but the first; evaluation and start are not in it."""
    counted = history[1:]
    seconds = sum(epoch["train_seconds"] for epoch in counted)
    return sum(epoch["images_per_second"] * epoch["train_seconds"] for epoch in counted) / seconds


def _rank(config: RunConfig, rank: int, port: int, found: Any) -> None:
    torch.set_num_threads(config.training.cpus_per_worker)
    if config.training.workers > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=config.training.workers
        )
    history = build_loop(config, rank=rank, world_size=config.training.workers).run()
    if rank == 0:
        found.put((speed_of(history), history[-1]["data_wait"]))


def bare_loop(config: RunConfig) -> tuple[float, float]:
    """Images a second of the loop in plain processes, and the share of the time that it waits for data."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    ranks = [context.Process(target=_rank, args=(config, r, port, found)) for r in range(config.training.workers)]
    for process in ranks:
        process.start()
    speed: tuple[float, float] = found.get(timeout=3600)
    for process in ranks:
        process.join()
    return speed


def loader_alone(config: RunConfig) -> float:
    """Images a second of one rank's data, with no model behind it."""
    data = build_loop(override(config, {"training.workers": 1})).data
    images = 0
    began = time.perf_counter()
    for epoch in range(3):
        data.train.set_epoch(epoch)
        images += sum(len(batch.targets) for step in data.train for batch in step)
    return images / (time.perf_counter() - began)


def measured(recipe: str, workers: int, arguments: argparse.Namespace, folder: Path) -> None:
    """Both in turn, the bare loop first and last; prints a row of the table."""
    changes = {
        "training.workers": workers, "training.epochs": EPOCHS, "training.global_batch": 4,
        "training.micro_batch": 2, "data.cache": arguments.cache, "tracking_uri": "none",
    }  # fmt: skip
    config = override(recipe_on_shapes(recipe, folder / "shapes", arguments.side, images=arguments.images), changes)
    bare, through_ray = [bare_loop(config)], list[float]()
    for number in range(arguments.rounds):
        run = override(config, {"output": str(folder / f"run-{workers}-{number}")})
        with ray_session():
            through_ray.append(speed_of(train(run).history))
        bare.append(bare_loop(config))
    # Each run through Ray is compared with the bare loops before and after it.
    ratios = [
        each / statistics.mean((before[0], after[0]))
        for each, before, after in zip(through_ray, bare[:-1], bare[1:], strict=True)
    ]
    speeds = [speed for speed, _ in bare]
    print(
        f"| {recipe} | {workers} | {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | "
        f"{max(speeds) / min(speeds):.3f} | {statistics.median(speeds):.1f} | {bare[0][1]:.1%} | "
        f"{loader_alone(config) / statistics.median(speeds):.1f} |",
        flush=True,
    )


def main() -> None:
    """Print the table; absolute speeds only serve to compare its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["tiny"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=128, help="pixels of a picture")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--cache", default="bytes")
    arguments = parser.parse_args()
    print("| recipe | workers | Ray over bare | spread of bare | images/s, bare | waits | loader over loop |")
    for recipe in arguments.recipe:
        for workers in arguments.workers:
            with tempfile.TemporaryDirectory() as folder:
                measured(recipe, workers, arguments, Path(folder))


if __name__ == "__main__":
    main()
