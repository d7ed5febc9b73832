"""Batch inference: a collection of images in, Parquet with one row an image out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipelines.cluster.session import Connect, ray_session
from pipelines.detect.load import describe_checked
from pipelines.detect.manifest import Manifest, build_manifest, list_identity
from pipelines.detect.predictor import PredictorFactory
from pipelines.detect.workers import Pool, Progress, Work, plan_pool, stream
from pipelines.predict import finish
from pipelines.predict.budget import ErrorBudget
from pipelines.predict.config import InferenceConfig, PredictConfig
from pipelines.predict.fingerprint import Fingerprint, model_sha256
from pipelines.predict.output import PARTS_FOLDER, SUCCESS_FILE, Record, begin, claim_output, write_json
from pipelines.predict.parts import SHOWN_ERRORS, ParquetSink, Part, Stamp, summary
from pipelines.predict.resume import Journal, done_parts, gaps, plan_tasks
from pipelines.predict.stored_manifest import StoredBlocks, write_manifest
from pipelines.predict.tables.choose import checked_table, commit, require_same_table
from pipelines.predict.tables.release import Committed, Release
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ErrorBudgetError, IncompleteError, StorageError, StoreUnavailableError
from sparse_detr.storage.lease import Lease, held
from sparse_detr.storage.location import Location, check_access, locate
from sparse_detr.storage.retry import patiently


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """An image that could not be used."""

    uri: str
    stage: str
    """`fetch`, `decode`, `resize` or `model`."""
    type: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """Counts, time and output of a finished run."""

    images: int
    """Rows written: one an image, broken ones included."""
    detections: int
    errors: int
    """Images with an error row."""
    seconds: float
    """From the first look at the arguments to the last file, start of the workers included; of the last session alone,
    where a run was cut short."""
    images_per_second: float
    """Images of that session over its seconds."""
    output: str
    """URI of the folder with `detections/*.parquet`, `errors.parquet`, `_run.json` and `_SUCCESS.json`."""
    fingerprint: str
    error_rows: tuple[ErrorRow, ...]
    """The first of the broken images; `errors.parquet` has them all."""
    done_before: int = 0
    """Images that an earlier session of the run had done."""
    table: Committed | None = None
    """The table that has the parts, where one was asked for."""


def predict(
    config: PredictConfig,
    *,
    on_progress: Progress | None = None,
    on_resume: Callable[[int, int], None] | None = None,
    connect: Connect = ray_session,
) -> PredictResult:
    """Detect objects in a collection of images and write one row an image.

    A broken image gets a row that says why, and disturbs no other. The run stops early when the model, the images or
    the output cannot be used, before any worker starts. What was done by a run that was cut short is not done again.

    Args:
        on_progress: called with (images done, images in all).
        on_resume: called with the same before the workers start, where some were done before.
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
    output = locate(config.output)
    inputs = {"images": config.images, "model": config.model, "annotations": config.annotations}
    for uri in filter(None, inputs.values()):
        check_access(locate(uri))
    check_access(output, writable=True)
    table = checked_table(config)
    fingerprint = fingerprint_of(config, describe_checked(config, [config.keep_ratio]))
    with held(output) as lease, _going_on(config):
        require_same_table(output, table)
        record = claim_output(output, fingerprint, _collection(config), config.existing, inputs)
        if record is not None and not config.retry_errors and finish.is_finished(output, finish.wanted(config)):
            result = _finished(output)
            if table is None or result.table is not None:
                return result
        record = record or _begin(output, config, fingerprint)
        stamp = Stamp(fingerprint=fingerprint.digest, manifest=record["manifest"])
        tally = _Tally(total=record["total"], parts={part.first: part for part in done_parts(output, stamp)})
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
                _follow(tasks, _work(config, record, stamp), pool, _Run(config, output, lease, tally, on_progress))
        _require_whole(tally)
        lease.check()
        committed = commit(table, Release(output=output, stamp=stamp, parts=tally.sorted()))
        return _finish(config, output, fingerprint, tally, before, time.monotonic() - started, committed)


def fingerprint_of(config: InferenceConfig, model: SparseDetr) -> Fingerprint:
    """Everything that decides the detections of a run with this model, whose numbers are not looked at."""
    size = config.image_size(model.image_size)
    return Fingerprint(
        model_sha256=model_sha256(locate(config.model)),
        keep_ratio=model.config.keep_ratio if config.keep_ratio is None else config.keep_ratio,
        short_side=size.short_side,
        max_side=size.max_side,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
        tile=config.tile,
        overlap=None if config.tile is None else config.overlap,
    )


def chosen_images(config: InferenceConfig) -> Manifest:
    """The images that the config names, listed now."""
    manifest = build_manifest(config.images, config.annotations, uri_column=config.uri_column)
    if config.limit is not None:
        return manifest.only(np.arange(min(config.limit, len(manifest))))
    if config.sample is not None and config.sample < len(manifest):
        return manifest.only(np.random.default_rng(0).choice(len(manifest), config.sample, replace=False))
    return manifest


@dataclass(slots=True, kw_only=True)
class _Tally:
    """Parts that are written so far, by their first row, and what was left undone.

    The budget counts this session's: what an earlier one left may be what this one is to do again.
    """

    total: int
    parts: dict[int, Part]
    undone: list[str] = field(default_factory=list)
    """Why blocks were left undone since the last one that was written."""
    reason: str = ""
    """Of the first block that was left undone."""
    sample: list[str] = field(default_factory=list)

    images: int = field(default=0, init=False)
    errors: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        # Counted once, and then as parts come: a run has up to 156 000 of them.
        self.images = sum(part.rows for part in self.parts.values())
        self.errors = sum(part.errors for part in self.parts.values())

    new_images: int = field(default=0, init=False)
    new_errors: int = field(default=0, init=False)
    tasks: int = field(default=0, init=False)

    def add(self, part: Part) -> None:
        self.new_images += part.rows
        self.new_errors += part.errors
        before = self.parts.get(part.first)
        self.images += part.rows - (before.rows if before else 0)
        self.errors += part.errors - (before.errors if before else 0)
        self.parts[part.first] = part

    def sorted(self) -> list[Part]:
        return [self.parts[first] for first in sorted(self.parts)]


@dataclass(frozen=True, slots=True)
class _Run:
    config: PredictConfig
    output: Location
    lease: Lease
    tally: _Tally
    on_progress: Progress | None


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
        "model": locate(config.model).uri,
        "root": manifest.root,
        "total": len(manifest),
        "manifest": write_manifest(output, manifest),
    }
    return begin(output, fingerprint, _collection(config), facts)


def _work(config: PredictConfig, record: Record, stamp: Stamp) -> Work:
    output = locate(config.output).uri
    return Work(
        config=config,
        predictor=PredictorFactory(
            config=config, keep_ratio=config.keep_ratio, score_threshold=config.score_threshold, tiles=config.tiles()
        ),
        root=record["root"],
        fingerprint=stamp.fingerprint,
        sink=ParquetSink(output=output, stamp=stamp, patience=config.store_patience),
        source=StoredBlocks(output=output, stamp=stamp, patience=config.store_patience),
    )


def _follow(tasks: list[Any], work: Work, pool: Pool, run: _Run) -> None:
    """Note the parts as they are written; stop the workers when too many images fail, or the store stays away."""
    journal, tally = Journal(run.output, work.sink.stamp), run.tally  # type: ignore[attr-defined]
    try:
        with closing(stream(tasks, work, pool)) as summaries:
            for table in summaries:
                for row in table.to_pylist():
                    _note(row, tally, journal)
                tally.tasks += 1
                run.lease.check()
                if run.on_progress is not None:
                    run.on_progress(tally.images, tally.total)
                _keep_budget(run.config, tally)
                # All workers in turn found the store away, and each has waited for it.
                if len(tally.undone) > 2 * pool.size:
                    break
    finally:
        with suppress(StorageError):
            journal.flush()


def _note(row: Mapping[str, Any], tally: _Tally, journal: Journal) -> None:
    if row["undone"] is not None:
        tally.undone.append(row["undone"])
        tally.reason = tally.reason or row["undone"]
        return
    part = Part(**{name: row[name] for name in summary_fields()})
    tally.add(part)
    tally.undone.clear()
    shown = [f"{error['uri']}: {error['message']}" for error in row["sample"]]
    tally.sample += shown[: SHOWN_ERRORS - len(tally.sample)]
    journal.add(part)


def summary_fields() -> tuple[str, ...]:
    """Names of a part's fields in a summary."""
    return tuple(summary(Part(first=0, last=0, size=0, sha256="", detections=0, errors=0)))


def _keep_budget(config: PredictConfig, tally: _Tally) -> None:
    budget = ErrorBudget.parse(config.error_budget)
    errors, images = tally.new_errors, tally.new_images
    # Of an earlier session only what cannot get better counts: a run that retries errors starts from none.
    old = 0 if config.retry_errors else tally.errors - errors
    if not (
        budget.exceeded(errors, images, tally.total, tally.tasks) or budget.exceeded(errors + old, 0, tally.total, 0)
    ):
        return
    raise ErrorBudgetError(
        f"error_budget: {budget.text} is exceeded, or will be: {errors} of the {images} images of this session failed "
        f"({tally.total} in all); first: {'; '.join(tally.sample[:3])}; the rows so far are in {config.output}; "
        "fix the images and add --retry-errors, or raise error_budget: the same command goes on"
    )


def _forget_parts_that_change(output: Location, stamp: Stamp, tally: _Tally) -> None:
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
    except StoreUnavailableError as error:
        raise IncompleteError(f"{error}; {_how_to_go_on(config)}") from None
    except IncompleteError as error:
        raise IncompleteError(f"{error}; {_how_to_go_on(config)}") from None


def _how_to_go_on(config: PredictConfig) -> str:
    how = "" if config.existing == "resume" else " with existing set to resume"
    return f"nothing that was done is lost, and the same command{how} goes on"


def _require_whole(tally: _Tally) -> None:
    missing = sum(last - first + 1 for first, last in gaps(tally.sorted(), tally.total))
    if missing:
        raise IncompleteError(
            f"{missing} of {tally.total} images are not done: {tally.reason or 'their workers gave no answer'}"
        )


def _finish(
    config: PredictConfig,
    output: Location,
    fingerprint: Fingerprint,
    tally: _Tally,
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
        error_rows=tuple(ErrorRow(**{name: row[name] for name in _ERROR_FIELDS}) for row in failed),
        done_before=before,
        table=table,
    )
    listed = [{"name": part.name, "rows": part.rows, "size": part.size, "sha256": part.sha256} for part in parts]
    write_json(output.child(SUCCESS_FILE), asdict(result) | {"parts": listed})
    return result


_ERROR_FIELDS = ("uri", "stage", "type", "message")


def _finished(output: Location) -> PredictResult:
    """The result of a run that had finished before."""
    content = json.loads(patiently(output.child(SUCCESS_FILE).read_bytes))
    del content["parts"]
    errors = tuple(ErrorRow(**row) for row in content.pop("error_rows"))
    # Runs of before tables were known have no word of it.
    table = content.pop("table", None)
    return PredictResult(
        **{**content, "done_before": content["images"], "error_rows": errors},
        table=None if table is None else Committed(**table),
    )
