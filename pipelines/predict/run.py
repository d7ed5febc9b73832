"""Batch inference: a collection of images in, Parquet with one row an image out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipelines.cluster.session import Connect, ray_session
from pipelines.detect.load import describe_checked
from pipelines.detect.manifest import list_identity
from pipelines.detect.pool import Pool, plan_pool, with_batch_size
from pipelines.detect.workers import Progress, Work, stream
from pipelines.predict import finish
from pipelines.predict.config import PredictConfig
from pipelines.predict.fingerprint import Fingerprint
from pipelines.predict.follow import Tally, follow, require_whole
from pipelines.predict.inference import chosen_images, fingerprint_of, predictor_factory, reachable
from pipelines.predict.output import PARTS_FOLDER, RUN_FILE, SUCCESS_FILE, Record, begin, claim_output, write_json
from pipelines.predict.parts import SHOWN_ERRORS, ParquetSink, Stamp
from pipelines.predict.result import PredictResult, error_rows, read_success, write_success
from pipelines.predict.resume import Journal, done_parts, plan_tasks
from pipelines.predict.silence import explained_silence
from pipelines.predict.stored_manifest import StoredBlocks, write_manifest
from pipelines.predict.tables.choose import checked_table, commit, require_same_table
from pipelines.predict.tables.release import Committed, Release
from pipelines.recipes.paths import is_model_uri
from sparse_detr.errors import IncompleteError, StoreUnavailableError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.lease import held
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.retry import patiently


def predict(
    config: PredictConfig,
    *,
    on_progress: Progress | None = None,
    on_resume: Callable[[int, int], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
    connect: Connect = ray_session,
) -> PredictResult:
    """Detect objects in a collection of images and write one row an image.

    A broken image gets a row that says why, and disturbs no other. The run stops early when the model, the images or
    the output cannot be used, before any worker starts. What was done by a run that was cut short is not done again.

    Args:
        on_progress: called with (images done, images in all).
        on_resume: called with the same before the workers start, where some were done before.
        on_wait: called, in another thread, with a sentence when a store is away that the workers wait for.
        connect: opens the Ray to work on.

    Returns:
        Counts, time and the folder of the rows; at once where the run had finished before.

    Raises:
        CheckpointError: the model folder is not one.
        ConfigError: settings that this model or this cluster cannot serve.
        StorageError: images or output out of reach, or no images there.
        OutputExistsError: the output holds another run's results, or another job is at work there.
        ErrorBudgetError: more images failed than allowed; the rows written until then remain.
        IncompleteError: some images were not done, because the store was away; the same call goes on.
    """
    started = time.monotonic()
    config = reachable(config)
    output = locate(config.output)
    inputs = {"images": config.images, "model": config.model_location().uri, "annotations": config.annotations}
    check_access(output, writable=True)
    table = checked_table(config)
    fingerprint = fingerprint_of(config, describe_checked(config, [config.keep_ratio]))
    with held(output) as lease, _going_on(config):
        require_same_table(output, table)
        record = claim_output(output, fingerprint, _collection(config), config.existing, inputs)
        if record is not None and not config.retry_errors and finish.is_finished(output, finish.wanted(config)):
            result = read_success(output)
            if table is None or result.table is not None:
                return result
        record = record or _begin(output, config, fingerprint)
        stamp = Stamp(fingerprint=fingerprint.digest, manifest=record["manifest"])
        tally = Tally(total=record["total"], parts={part.first: part for part in done_parts(output, stamp)})
        before = tally.images
        tasks = plan_tasks(tally.sorted(), tally.total, config.images_per_block, retry_errors=config.retry_errors)
        # What is about to change is not whole until it is finished again.
        patiently(output.child(SUCCESS_FILE).delete_file)
        if config.retry_errors:
            _forget_parts_that_change(output, stamp, tally)
        if before and on_resume is not None:
            on_resume(before, tally.total)
        if tasks:
            with connect() as session:
                pool = plan_pool(config, session, sum(task.num_rows for task in tasks))
                config = _with_batch_size(config, output, record, pool)
                work = _work(config, record, stamp)
                stores = [output, locate(config.images)]
                with explained_silence(stores, on_wait, patience=config.store_patience) as moved:
                    follow(
                        lambda left: stream(left, work, pool), tasks, tally, Journal(output, stamp), config=config,
                        lease=lease, workers=pool.size, on_progress=_both(moved, on_progress),
                    )  # fmt: skip
        require_whole(tally, tasks)
        lease.check()
        committed = commit(table, Release(output=output, stamp=stamp, parts=tally.sorted()))
        return _finish(config, output, fingerprint, tally, before, time.monotonic() - started, committed)


def _both(moved: Callable[[], None], on_progress: Progress | None) -> Progress:
    def report(done: int, total: int) -> None:
        moved()
        if on_progress is not None:
            on_progress(done, total)

    return report


def _collection(config: PredictConfig) -> Record:
    """Which images: a run that goes on must look at the same."""
    annotations = None if config.annotations is None else locate(config.annotations).uri
    return {
        "images": locate(config.images).uri,
        "annotations": annotations,
        "list": list_identity(config.images, config.annotations),
        "uri_column": config.uri_column,
        "limit": config.limit,
        "sample": config.sample,
    }


def _begin(output: Location, config: PredictConfig, fingerprint: Fingerprint) -> Record:
    manifest = chosen_images(config)
    facts = {
        "model": config.model if is_model_uri(config.model) else config.model_location().uri,
        "root": manifest.root,
        "total": len(manifest),
        "manifest": write_manifest(output, manifest),
    }
    return begin(output, fingerprint, _collection(config), facts)


def _with_batch_size(config: PredictConfig, output: Location, record: Record, pool: Pool) -> PredictConfig:
    """The config with the number that this run began with, or that is measured now: last digits depend on it."""
    known = record.get("batch_size")
    if known is not None and config.batch_size == "auto":
        return replace(config, batch_size=known)
    config = with_batch_size(config, predictor_factory(config), pool)
    if known is None:
        write_json(output.child(RUN_FILE), {**record, "batch_size": config.batch_size})
    return config


def _work(config: PredictConfig, record: Record, stamp: Stamp) -> Work:
    output = locate(config.output).uri
    return Work(
        config=config,
        predictor=predictor_factory(config),
        root=record["root"],
        fingerprint=stamp.fingerprint,
        sink=ParquetSink(output=output, stamp=stamp, patience=config.store_patience),
        source=StoredBlocks(output=output, stamp=stamp, patience=config.store_patience),
    )


def _forget_parts_that_change(output: Location, stamp: Stamp, tally: Tally) -> None:
    """Begin the journal anew without the parts that are to be replaced: theirs would tell of what is no more."""
    patiently(output.child(PARTS_FOLDER).delete_dir)
    journal = Journal(output, stamp)
    for part in tally.sorted():
        if not part.errors:
            journal.add(part)
    journal.flush()


@contextmanager
def _going_on(config: PredictConfig) -> Iterator[None]:
    """A store that is away for too long leaves the run unfinished, wherever it is met."""
    try:
        yield
    except (StoreUnavailableError, IncompleteError) as error:
        how = "" if config.existing == "resume" else " with existing set to resume"
        raise IncompleteError(f"{error}; nothing that was done is lost, and the same command{how} goes on") from None


def _finish(
    config: PredictConfig,
    output: Location,
    fingerprint: Fingerprint,
    tally: Tally,
    before: int,
    seconds: float,
    table: Committed | None,
) -> PredictResult:
    parts = tally.sorted()
    failed = finish.write_errors(output, parts, SHOWN_ERRORS)
    finish.write_forms(output, parts, finish.wanted(config))
    finish.delete_others(output, parts)
    result = PredictResult(
        images=tally.images,
        detections=sum(part.detections for part in parts),
        errors=tally.errors,
        seconds=seconds,
        images_per_second=(tally.images - before) / seconds,
        output=output.uri,
        fingerprint=fingerprint.digest,
        error_rows=error_rows(failed),
        done_before=before,
        batch_size=None if config.batch_size == "auto" else config.batch_size,
        table=table,
    )
    write_success(output, result, parts)
    return result
