"""Detection spread over a Ray cluster: blocks of the manifest go to a fixed pool of actors that hold the model.

Fetching, decoding and the model sit in one actor, so that no decoded pixel enters Ray's object store. The pool
never books every CPU: Ray Data's own tasks need one, and the job would wait for it for ever.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import pyarrow as pa
import torch

from pipelines.cluster.access import DriverAccess
from pipelines.cluster.session import RaySession, available_cpus
from pipelines.cluster.user_errors import pack, unpack
from pipelines.detect.config import DetectionConfig
from pipelines.detect.predictor import Predictor
from pipelines.detect.rows import results_table
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError, SparseDetrError
from sparse_detr.storage.location import locate

Rows = Generator[pa.Table, None, None]
"""Tables as they come; closing it stops those who make them."""
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


_USER_ERROR = pa.schema([("kind", pa.string()), ("message", pa.string())])
"""A packed user error as a table: what a worker returns in place of rows when it meets one."""


class Sink(Protocol):
    """Takes the rows of a block inside the worker; its return value goes to the driver."""

    def __call__(self, first: int, rows: pa.Table) -> pa.Table:
        """Take the rows of a block whose first row has this number in the manifest."""


class MakePredictor(Protocol):
    """A picklable way to make a predictor."""

    def __call__(self, model: SparseDetr, device: str) -> Predictor:
        """The predictor of this model on this device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """All that a worker has to know."""

    config: DetectionConfig
    predictor: MakePredictor
    """Makes the predictor once the worker has the model: a `PredictorFactory`, or one with instruments."""
    root: str
    """Folder of the images."""
    fingerprint: str
    sink: Sink
    table: Callable[..., pa.Table] = results_table
    """Makes rows of a block's results; takes what `results_table` does."""


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


def stream(blocks: Sequence[pa.Table], work: Work, pool: Pool) -> Rows:
    """Run the workers over blocks of a manifest and yield what their sinks return, block by block, as they finish.

    Closing the iterator stops the workers.

    Raises:
        SparseDetrError: as a worker raised it (storage of the output out of reach, for one).
    """
    # Imported late: ray_session sets what Ray reads from the environment when it is imported.
    import ray.data

    # Each table is one block and stays one: no read task cuts or joins them.
    found = ray.data.from_arrow(list(blocks)).map_batches(
        Worker,
        fn_constructor_kwargs={"work": work, "access": DriverAccess(os.environ), "gpu": bool(pool.gpus)},
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.size),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )
    found.context.enable_progress_bars = False
    found.context.print_on_execution_start = False
    with (
        _quiet_ray_data(),
        closing(cast(Rows, iter(found.iter_batches(batch_size=None, batch_format="pyarrow")))) as tables,
    ):
        for table in tables:
            _raise_user_error(table)
            yield table


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Keep Ray Data's notes out of the terminal, where the caller shows progress; its log file has them all."""
    consoles = [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


class Worker:
    """The actor: a model, and a sink for what it finds."""

    def __init__(self, work: Work, access: DriverAccess, gpu: bool) -> None:
        """Load the model once.

        Args:
            work: what to do.
            access: to the object store, which this process may lack; works by arriving.
            gpu: whether this worker has a GPU to itself.
        """
        torch.set_num_threads(max(1, int(work.config.cpus_per_worker)))
        self._work = work
        self._user_error: pa.Table | None = None
        try:
            self._prepare("cuda" if gpu else "cpu")
        except SparseDetrError as error:
            self._user_error = _user_error_table(error)

    def _prepare(self, device: str) -> None:
        self._root = locate(self._work.root)
        model = SparseDetr.from_pretrained(self._work.config.model)
        self._classes = model.classes
        self._predictor = self._work.predictor(model, device)
        self._predictor.check()

    def __call__(self, block: pa.Table) -> pa.Table:
        """Detect the objects of a block of the manifest and hand the rows to the sink."""
        if self._user_error is not None:
            return self._user_error
        indices = block.column("index").to_pylist()
        try:
            results = self._predictor.detect(self._root, indices, block.column("key").to_pylist())
            image_ids = dict(zip(indices, block.column("image_id").to_pylist(), strict=True))
            rows = self._work.table(
                results,
                [image_ids[result.index] for result in results],
                root=self._work.root,
                classes=self._classes,
                fingerprint=self._work.fingerprint,
            )
            return self._work.sink(indices[0], rows)
        except SparseDetrError as error:
            return _user_error_table(error)


def _user_error_table(error: SparseDetrError) -> pa.Table:
    kind, message = pack(error)
    return pa.Table.from_pylist([{"kind": kind, "message": message}], schema=_USER_ERROR)


def _raise_user_error(table: pa.Table) -> None:
    if table.schema.equals(_USER_ERROR):
        (row,) = table.to_pylist()
        raise unpack((row["kind"], row["message"]))
