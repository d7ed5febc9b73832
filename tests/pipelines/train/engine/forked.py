"""Ranks of a training as forked processes that meet over gloo: they start in no time, as everything is imported."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 240.0
"""Longest wait for all ranks: minutes on cores that others use too."""


def run_ranks(world_size: int, folder: Path, work: Callable[[int, int], Any]) -> list[Any]:
    """What `work(rank, world_size)` returns on every rank; each runs in a process of its own, with one thread."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = [
        multiprocessing.get_context("fork").Process(target=_rank, args=(rank, world_size, folder, work))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(SECONDS)
        assert [process.exitcode for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: Path, work: Callable[[int, int], Any]) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.save(work(rank, world_size), folder / f"rank{rank}.pt")
    if world_size > 1:
        dist.destroy_process_group()
