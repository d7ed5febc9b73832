"""CPUs and GPUs of the cluster, and what fits into them."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.recipes.config import RunConfig, TrainingConfig
from sparse_detr.errors import ConfigError


def workers_resources(training: TrainingConfig, workers: int) -> dict[str, float]:
    """CPUs and GPUs that so many workers take together; nothing that they do not need."""
    needs = {"CPU": float(workers * training.cpus_per_worker)}
    return needs | {"GPU": float(workers)} if training.use_gpu else needs


def require_cluster(training: TrainingConfig, cluster: Mapping[str, float]) -> None:
    """Refuse what could not start now.

    Raises:
        ConfigError: the cluster has fewer CPUs or GPUs than the fewest workers take together.
    """
    workers, field = training.fewest_workers, "training.min_workers" if training.min_workers else "training.workers"
    for kind, need in workers_resources(training, workers).items():
        if need > cluster.get(kind, 0):
            raise ConfigError(
                f"{field}: {workers} take {need:g} {kind}s together, the cluster has {cluster.get(kind, 0):g}; lower "
                "training.workers or training.cpus_per_worker, or connect to a larger cluster"
            )


DRIVER_CPUS = 0.01
"""CPUs of a trial itself when its workers are Ray Train's; Tune refuses 0."""


def trial_resources(run: RunConfig) -> dict[str, float]:
    """Resources of a trial itself in Tune: everything where it trains in its own process, next to nothing where
    Ray Train reserves the workers."""
    if run.training.workers > 1:
        return {"CPU": DRIVER_CPUS}
    return {"CPU": float(run.training.cpus_per_worker)} | ({"GPU": 1.0} if run.training.use_gpu else {})


def fitting_trials(run: RunConfig, cluster: Mapping[str, float]) -> int:
    """Number of trials that the cluster holds at once. More would wait for each other's workers for ever.

    Raises:
        ConfigError: not even one.
    """
    training = run.training
    needs = {"CPU": float(training.workers * training.cpus_per_worker) + (DRIVER_CPUS if training.workers > 1 else 0)}
    if training.use_gpu:
        needs["GPU"] = float(training.workers)
    for kind, need in needs.items():
        if need > cluster.get(kind, 0):
            raise ConfigError(
                f"run.training.workers: one trial takes {need:g} {kind}s, the cluster has {cluster.get(kind, 0):g}; "
                "lower run.training.workers or run.training.cpus_per_worker, or connect to a larger cluster"
            )
    return min(int(cluster[kind] // need) for kind, need in needs.items())
