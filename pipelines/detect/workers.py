"""Detection spread over a Ray cluster: tasks go to a fixed pool of actors that hold the model.

Fetching, decoding and the model are in one actor, so that no decoded pixel enters Ray's object store. The pool never
books every CPU: Ray Data's own tasks need one, and the job would wait for it for ever.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pyarrow as pa
import torch

from pipelines.cluster.access import DriverAccess
from pipelines.cluster.user_errors import PackedError, pack, unpack
from pipelines.detect.attempts import MOST, start_attempts
from pipelines.detect.config import DetectionConfig
from pipelines.detect.device_errors import EXIT_CODE
from pipelines.detect.images import ImageFailure, ImageLoader, ImageRef, ImageResult
from pipelines.detect.load import load_patiently
from pipelines.detect.manifest import MANIFEST_SCHEMA, places
from pipelines.detect.pool import Pool
from pipelines.detect.predictor import MakePredictor
from pipelines.detect.prefetch import Block
from pipelines.detect.quarantine import find_killers
from pipelines.detect.rows import results_table
from pipelines.detect.watchdog import Watchdog
from sparse_detr.errors import (
    DeviceError,
    IncompleteError,
    SparseDetrError,
    StorageError,
    StoreUnavailableError,
)
from sparse_detr.records import COCO_IMAGE_SIZE

Rows = Generator[pa.Table, None, None]
"""Tables as they come; closing it stops those who make them."""
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


USER_ERROR = pa.field("user_error", pa.struct([("kind", pa.string()), ("message", pa.string())]))
"""A packed user error as a column: a worker returns it in place of rows when it meets one."""


def user_error_row(error: PackedError) -> dict[str, dict[str, str]]:
    """The row of a packed user error, with that column alone."""
    return {USER_ERROR.name: {"kind": error[0], "message": error[1]}}


class Sink(Protocol):
    """Takes the rows of a block inside the worker; its return value goes to the driver."""

    def __call__(self, block: pa.Table, rows: pa.Table) -> pa.Table:
        """Take the rows that were made of a block of the manifest."""

    def failed(self, error: PackedError) -> pa.Table:
        """Table that goes to the driver where a user error ended the task; of the same columns."""


class BlockSource(Protocol):
    """Reads a task inside the worker."""

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        """Blocks of the task: rows of a manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """All that a worker has to know."""

    config: DetectionConfig
    predictor: MakePredictor
    """Makes the predictor once the worker has the model: a `PredictorFactory`, or one with instruments."""
    root: str
    """Folder of the images; empty where keys are URIs."""
    fingerprint: str
    sink: Sink
    source: BlockSource
    table: Callable[..., pa.Table] = results_table
    """Makes rows of a block's results; takes what `results_table` does."""


def lazily(tasks: Sequence[pa.Table], work: Work, pool: Pool, attempts: Any) -> Any:
    """What the sinks will return as a Ray Dataset: nothing runs before it is asked for rows.

    Args:
        tasks: for the workers' source.
        work: what the workers do.
        pool: how many there are.
        attempts: as `Worker` takes it.
    """
    # Imported late: ray_session sets what Ray reads from the environment when it is imported.
    import ray.data

    # Each table is one block of Ray Data's and stays one: no read task cuts or joins them.
    return ray.data.from_arrow(list(tasks)).map_batches(
        Worker,
        fn_constructor_kwargs={
            "work": work, "access": DriverAccess(os.environ), "gpu": bool(pool.gpus), "attempts": attempts,
        },
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.size),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus or None,
    )  # fmt: skip


def stream(tasks: Sequence[pa.Table], work: Work, pool: Pool) -> Rows:
    """Run the workers over tasks and yield what their sinks return, task by task, as they finish.

    Closing the iterator stops the workers.

    Raises:
        SparseDetrError: as a worker raised it (storage of the output out of reach, for one).
    """
    found = lazily(tasks, work, pool, start_attempts())
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

    def __init__(self, work: Work, access: DriverAccess, gpu: bool, attempts: Any = None) -> None:
        """Load the model once.

        Args:
            work: what to do.
            access: to the object store, which this process may lack; works by arriving.
            gpu: whether this worker has a GPU to itself.
            attempts: handle of the run's `Attempts`; None begins every block as if for the first time.
        """
        torch.set_num_threads(max(1, int(work.config.cpus_per_worker)))
        self._work = work
        self._attempts = attempts
        self._user_error: PackedError | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._device = "cuda" if gpu else "cpu"
        self._load()

    def _load(self) -> None:
        self._user_error = None
        try:
            self._prepare(self._device)
        except SparseDetrError as error:
            self._user_error = pack(error)

    def _prepare(self, device: str) -> None:
        config = self._work.config
        self._place = places(self._work.root)
        model = load_patiently(config)
        self._classes = model.classes
        self._predictor = self._work.predictor(model, device, Watchdog(config.image_seconds))
        self._predictor.check()

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        """Detect the objects of the task's blocks and hand the rows to the sink."""
        if self._user_error is not None and self._user_error[0] == StoreUnavailableError.__name__:
            # The store was away when this worker started; it may be back.
            self._load()
        if self._user_error is not None:
            yield self._work.sink.failed(self._user_error)
            return
        writing: deque[Future[pa.Table]] = deque()
        failed: SparseDetrError | None = None
        try:
            yield from self._detected(task, writing)
        except SparseDetrError as error:
            failed = error
        while writing:
            try:
                yield writing.popleft().result()
            except SparseDetrError as error:
                failed = failed or error
        if failed is not None:
            yield self._work.sink.failed(pack(failed))

    def _detected(self, task: pa.Table, writing: deque[Future[pa.Table]]) -> Iterator[pa.Table]:
        """Written blocks; a block is written while the model runs on the next."""
        tables: deque[pa.Table] = deque()

        def blocks() -> Iterator[Block]:
            for table in self._work.source(task):
                tables.append(table)
                yield self._block(table)

        try:
            for results in self._predictor.detect_blocks(self._place, blocks()):
                writing.append(self._writer.submit(self._write, tables.popleft(), results))
                if len(writing) > 1:
                    yield writing.popleft().result()
        except DeviceError as error:
            self._leave(error, tables[0].column("index")[0].as_py())
            raise

    def _leave(self, error: DeviceError, block: int) -> None:
        """End this process, which has no GPU any more: Ray starts another one, which attempts the task again."""
        if self._attempts is None:
            return
        import ray

        logging.getLogger(__name__).error("%s", error)
        self._writer.shutdown()
        if error.image is not None:
            ray.get(self._attempts.blame.remote(block, error.image, str(error)))
        os._exit(EXIT_CODE)

    def _block(self, table: pa.Table) -> Block:
        """The images of a block, and care where an attempt at it has ended a worker."""
        columns = (table.column(name).to_pylist() for name in ("index", "key", "etag"))
        images = [ImageRef(index=index, key=key, etag=etag) for index, key, etag in zip(*columns, strict=True)]
        if not images:
            return Block(images=images)
        attempt = self._begin(images[0].index)
        if attempt == 1:
            return Block(images=images)
        if attempt > MOST:
            raise IncompleteError(
                f"images {images[0].index} to {images[-1].index} of the manifest ({images[0].key} ...) ended their "
                f"worker {MOST} times, and no image of them does so when decoded alone; is memory short? Fewer workers "
                "or a smaller short_side need less"
            )
        failures = find_killers(self._files(images), self._seconds) | self._culprits(images[0].index)
        return Block(images=images, failures=failures, one_by_one=attempt > 2)

    @property
    def _seconds(self) -> float:
        return self._work.config.image_seconds

    def _begin(self, block: int) -> int:
        if self._attempts is None:
            return 1
        import ray

        return int(ray.get(self._attempts.begin.remote(block)))

    def _culprits(self, block: int) -> dict[int, ImageFailure]:
        """Images that made the GPU fail, alone and again."""
        import ray

        found = ray.get(self._attempts.culprits.remote(block))
        return {
            image: ImageFailure(stage="model", type=DeviceError.__name__, message=said) for image, said in found.items()
        }

    def _files(self, images: Sequence[ImageRef]) -> Iterator[tuple[int, bytes]]:
        loader = ImageLoader(COCO_IMAGE_SIZE, patience=self._work.config.store_patience)
        for image in images:
            try:
                yield image.index, loader.fetch(self._place, image)
            except StoreUnavailableError:
                raise
            except StorageError:
                continue

    def _write(self, block: pa.Table, results: Sequence[ImageResult]) -> pa.Table:
        indices = block.column("index").to_pylist()
        image_ids = dict(zip(indices, block.column("image_id").to_pylist(), strict=True))
        rows = self._work.table(
            results,
            [image_ids[result.index] for result in results],
            root=self._work.root,
            classes=self._classes,
            fingerprint=self._work.fingerprint,
        )
        for name in block.column_names[len(MANIFEST_SCHEMA) :]:
            rows = rows.append_column(block.schema.field(name), block.column(name))
        written = self._work.sink(block, rows)
        if self._attempts is not None and indices:
            self._attempts.done.remote(indices[0])
        return written


def _raise_user_error(table: pa.Table) -> None:
    if USER_ERROR.name in table.column_names:
        for error in table.column(USER_ERROR.name).drop_null().to_pylist():
            raise unpack((error["kind"], error["message"]))
