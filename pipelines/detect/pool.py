"""Workers of a detection: how many, with what resources each, and how many images they take at once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from pipelines.cluster.access import DriverAccess
from pipelines.cluster.session import RaySession, available_cpus
from pipelines.cluster.user_errors import PackedError, pack, unpack
from pipelines.detect.batch_size import Speed, fastest, speeds
from pipelines.detect.config import DetectionConfig
from pipelines.detect.load import load_patiently
from pipelines.detect.predictor import MakePredictor
from sparse_detr.errors import ConfigError, SparseDetrError

Config = TypeVar("Config", bound=DetectionConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Number of actors, and the resources that Ray books for each."""

    size: int
    cpus: float
    gpus: int


def plan_pool(config: DetectionConfig, session: RaySession, blocks: int) -> Pool:
    """Fit the workers into the cluster, with one CPU left for Ray Data's own tasks.

    Raises:
        ConfigError: GPUs are asked for, and the cluster has none or fewer than workers.
    """
    gpu = config.device == "gpu" or (config.device == "auto" and session.gpus >= 1)
    if gpu and session.gpus < (config.workers or 1):
        raise ConfigError(
            f"workers: {config.workers or 1} on GPUs, but the cluster has {session.gpus:g}; give fewer workers, or "
            "device cpu"
        )
    wanted = config.workers or int(session.gpus if gpu else _cores(session))
    size = max(1, min(wanted, blocks))
    share = min(config.cpus_per_worker, max(session.cpus - 1.0, 0.0) / size)
    # Ray counts in steps of 0.0001; rounding up could take the CPU that has to stay free.
    return Pool(size=size, cpus=math.floor(share * 1000) / 1000, gpus=int(gpu))


def _cores(session: RaySession) -> float:
    """Cores that are really there: a Ray of this machine's own may believe in more CPUs than it has."""
    on_loopback = session.address.startswith("127.")
    return min(session.cpus, available_cpus()) if on_loopback else session.cpus


def with_batch_size(config: Config, predictor: MakePredictor, pool: Pool) -> Config:
    """The config with a number for batch size: `auto` is measured by one process with the resources of a worker.

    It runs before the workers do, on blank images. One that memory ends tells what it had measured until then.

    Raises:
        SparseDetrError: the model cannot be loaded or run there.
    """
    if config.batch_size != "auto":
        return config
    # Imported late: see `lazily`.
    import ray

    measure: Any = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=0)(_measured)
    found: list[Speed] = []
    try:
        for each in measure.remote(config, predictor, DriverAccess(os.environ), pool):
            speed, error = ray.get(each)
            if error is not None:
                raise unpack(error)
            found.append(speed)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        pass
    return replace(config, batch_size=fastest(found))


def _measured(
    config: DetectionConfig, make: MakePredictor, access: DriverAccess, pool: Pool
) -> Iterator[tuple[Speed | None, PackedError | None]]:
    """Speeds as they are measured, or an error; `access` works by arriving."""
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    try:
        model = load_patiently(config)
        predictor = make(model, "cuda" if pool.gpus else "cpu")
        for speed in speeds(predictor.run, predictor.size, most=config.images_per_block, processes=pool.size):
            yield speed, None
    except SparseDetrError as error:
        yield None, pack(error)
