"""What a batch inference would do: how many images, which, with what, and for how long by a measured sample."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.cluster.session import RaySession, available_cpus, ray_session
from pipelines.detect.images import ImageRef
from pipelines.detect.load import load_checked
from pipelines.detect.manifest import Manifest, places
from pipelines.detect.pool import Pool, plan_pool
from pipelines.detect.prefetch import Block
from pipelines.predict.config import PredictConfig
from pipelines.predict.inference import chosen_images, fingerprint_of, predictor_factory, reachable
from pipelines.predict.tables.choose import checked_table
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import locate

SAMPLE = 32
"""Images that are timed, chosen by chance, after as many that are not: half a minute on one core at 800 pixels."""
FIRST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do."""

    images: int
    first: tuple[str, ...]
    """Names of the first images."""
    bytes: int | None
    """Of all images; None where they were not listed, but named by a file."""
    pool: Pool
    blocks: int
    batch_size: int
    fingerprint: str
    images_per_second: float
    """Of one worker, by the sample, on this machine and its CPU."""
    failures: tuple[str, ...]
    """Images of the sample that would get an error row."""

    @property
    def hours(self) -> float:
        """Of the whole run, with all workers as fast as one here; start-up not counted."""
        return self.images / self.images_per_second / self.pool.size / 3600

    def facts(self) -> Mapping[str, object]:
        """Rows for the terminal."""
        size = {} if self.bytes is None else {"GB": self.bytes / 1e9}
        return {
            "images": self.images,
            **size,
            "parts": self.blocks,
            "batch size": self.batch_size,
            "workers": self.pool.size,
            "CPUs booked a worker": self.pool.cpus,
            "GPUs booked a worker": self.pool.gpus,
            "images/s of one worker, on a sample here": self.images_per_second,
            "hours": self.hours,
            "worker hours": self.hours * self.pool.size,
            "fingerprint": self.fingerprint,
        }


def dry_run(config: PredictConfig) -> Plan:
    """List the images, load the model, time a sample of images here; write nothing.

    A cluster is asked for its resources where RAY_ADDRESS names one; the sample runs here, on the CPU.

    Raises:
        SparseDetrError: as `predict`.
    """
    config = reachable(config)
    if config.output:
        check_access(locate(config.output), writable=True)
        checked_table(config)
    model = load_checked(config, [config.keep_ratio])
    manifest = chosen_images(config)
    blocks = -(-len(manifest) // config.images_per_block)
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    factory = predictor_factory(config)
    predictor = factory(model, "cpu")
    chosen = np.random.default_rng(0).permutation(len(manifest))[: 2 * SAMPLE]
    warm, timed = (_block(manifest, rows) for rows in (chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]))
    place = places(manifest.root)
    list(predictor.detect_blocks(place, [warm]))
    started = time.perf_counter()
    (results,) = predictor.detect_blocks(place, [timed])
    speed = len(results) / (time.perf_counter() - started)
    sizes = manifest.table.column("size")
    return Plan(
        images=len(manifest),
        first=tuple(manifest.table.column("key").slice(0, FIRST).to_pylist()),
        bytes=None if sizes.null_count else int(np.sum(sizes.to_numpy())),
        pool=plan_pool(config, _session(), blocks),
        blocks=blocks,
        batch_size=predictor.batch_size,
        fingerprint=fingerprint_of(config, model).digest,
        images_per_second=speed,
        failures=tuple(f"{found.key}: {found.failure.message}" for found in results if found.failure is not None),
    )


def _block(manifest: Manifest, rows: np.ndarray) -> Block:
    keys = manifest.table.column("key")
    return Block(images=[ImageRef(index=int(row), key=keys[int(row)].as_py()) for row in rows])


def _session() -> RaySession:
    if os.environ.get("RAY_ADDRESS"):
        with ray_session() as session:
            return session
    cpus = max(4, available_cpus())
    return RaySession(address="127.0.0.1", dashboard=None, cpus=cpus, gpus=torch.cuda.device_count(), local=True)
