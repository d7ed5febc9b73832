"""Detections as a Ray Dataset to go on with: nothing is written, and nothing runs before rows are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.cluster.session import ray_session
from pipelines.cluster.user_errors import PackedError, unpack
from pipelines.detect.attempts import AttemptsOfEach, start_attempts
from pipelines.detect.load import describe_checked
from pipelines.detect.pool import plan_pool, with_batch_size
from pipelines.detect.workers import Work, lazily
from pipelines.predict.config import InferenceConfig
from pipelines.predict.inference import chosen_images, fingerprint_of, predictor_factory, reachable
from pipelines.predict.resume import TASKS
from sparse_detr.errors import require

if TYPE_CHECKING:
    import ray.data


def detect_dataset(config: InferenceConfig) -> ray.data.Dataset:
    """The detections of a collection as a Ray Dataset, one row an image, with the columns of a `predict` run.

    The images are listed now; models are loaded and images read when the dataset is used, each time anew, so
    `materialize()` it before a second use. Nothing is kept of a job that is cut short, nor skipped: that is what
    `predict` is for. A broken image is a row with an `error`; a store that is away for longer than `store_patience`
    ends the job.

    Args:
        config: model, images and settings. Ray must be connected: by `ray.init`, or inside of `ray_session()`.

    Raises:
        ConfigError: Ray is not connected, or settings that this model or this cluster cannot serve.
        CheckpointError, StorageError: model or images cannot be used.
    """
    import ray

    require(
        ray.is_initialized(),
        "ray: not connected; call ray.init(), or enter pipelines.cluster.session.ray_session(), and stay in it while "
        "the dataset is used",
    )
    config = reachable(config)
    fingerprint = fingerprint_of(config, describe_checked(config, [config.keep_ratio]))
    manifest = chosen_images(config)
    blocks = -(-len(manifest) // config.images_per_block)
    with ray_session() as session:
        pool = plan_pool(config, session, blocks)
    config = with_batch_size(config, predictor_factory(config), pool)
    work = Work(
        config=config,
        predictor=predictor_factory(config),
        root=manifest.root,
        fingerprint=fingerprint.digest,
        sink=Rows(),
        source=CutTask(rows=config.images_per_block),
    )
    tasks = manifest.blocks(-(-blocks // TASKS) * config.images_per_block)
    found: ray.data.Dataset = lazily(tasks, work, pool, AttemptsOfEach(start_attempts()))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CutTask:
    """A source whose tasks are rows of the manifest, several blocks of them."""

    rows: int
    """Of a block."""

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        """The blocks of a task."""
        for start in range(0, task.num_rows, self.rows):
            yield task.slice(start, self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A sink that hands the rows on."""

    def __call__(self, block: pa.Table, rows: pa.Table) -> pa.Table:
        """The rows."""
        return rows

    def failed(self, error: PackedError) -> pa.Table:
        """A user error ends the job: there is no table of summaries to tell it by."""
        raise unpack(error)
