"""Batch inference: a collection of images in, Parquet with one row an image out."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from pipelines.cluster.session import Connect, ray_session
from pipelines.detect.load import load_checked
from pipelines.detect.manifest import Manifest, build_manifest
from pipelines.detect.predictor import PredictorFactory
from pipelines.detect.workers import Progress, Rows, Work, plan_pool, stream
from pipelines.predict.config import PredictConfig
from pipelines.predict.fingerprint import Fingerprint, model_sha256
from pipelines.predict.output import SUCCESS_FILE, begin, claim_output, write_json
from pipelines.predict.parquet import SHOWN_ERRORS, ParquetSink, write_coco_results
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ErrorBudgetError
from sparse_detr.storage.location import Location, check_access, locate


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
    """From the first look at the arguments to the last file, start of the workers included."""
    images_per_second: float
    output: str
    """URI of the folder with `detections/*.parquet`, `_run.json` and `_SUCCESS.json`."""
    fingerprint: str
    error_rows: tuple[ErrorRow, ...]
    """The first of the broken images; the Parquet files have them all."""


@dataclass(slots=True, kw_only=True)
class _Tally:
    """Counts of what the workers have written so far."""

    images: int = 0
    detections: int = 0
    errors: int = 0
    sample: list[ErrorRow] = field(default_factory=list)

    def add(self, summary: pa.Table) -> None:
        for row in summary.to_pylist():
            self.images += row["images"]
            self.detections += row["detections"]
            self.errors += row["errors"]
            self.sample += [ErrorRow(**error) for error in row["sample"][: SHOWN_ERRORS - len(self.sample)]]


def predict(
    config: PredictConfig, *, on_progress: Progress | None = None, connect: Connect = ray_session
) -> PredictResult:
    """Detect objects in a collection of images and write one row an image.

    A broken image gets a row that says why, and disturbs no other. The run stops early when the model, the images
    or the output cannot be used, before any worker starts.

    Returns:
        Counts, time and the folder of the rows.

    Raises:
        CheckpointError: the model folder is not one.
        ConfigError: settings that this model or this cluster cannot serve.
        StorageError: images or output out of reach, or no images there.
        OutputExistsError: the output holds another run's results and `existing` is `refuse`.
        ErrorBudgetError: more images failed than allowed; the rows written until then remain.
    """
    started = time.monotonic()
    output = locate(config.output)
    check_access(output, writable=True)
    fingerprint = _fingerprint(config, load_checked(config, [config.keep_ratio]))
    claim = claim_output(output, fingerprint, config.existing)
    manifest = build_manifest(config.images, config.annotations)
    tally = _Tally()
    with connect() as session:
        blocks = manifest.blocks(config.images_per_block)
        pool = plan_pool(config, session, len(blocks))
        begin(claim, fingerprint, _facts(config, manifest))
        work = Work(
            config=config,
            predictor=PredictorFactory(
                config=config, keep_ratio=config.keep_ratio, score_threshold=config.score_threshold
            ),
            root=manifest.root,
            fingerprint=fingerprint.digest,
            sink=ParquetSink(output=output.uri),
        )
        _follow(stream(blocks, work, pool), config, manifest, tally, on_progress)
    if config.coco_results:
        write_coco_results(output)
    return _finish(output, fingerprint, tally, time.monotonic() - started)


def _fingerprint(config: PredictConfig, model: SparseDetr) -> Fingerprint:
    size = config.image_size(model.image_size)
    return Fingerprint(
        model_sha256=model_sha256(locate(config.model)),
        keep_ratio=model.config.keep_ratio if config.keep_ratio is None else config.keep_ratio,
        short_side=size.short_side,
        max_side=size.max_side,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
    )


def _facts(config: PredictConfig, manifest: Manifest) -> dict[str, object]:
    return {
        "model": locate(config.model).uri,
        "images": manifest.root,
        "annotations": config.annotations,
        "total": len(manifest),
        "images_per_block": config.images_per_block,
    }


def _follow(
    summaries: Rows,
    config: PredictConfig,
    manifest: Manifest,
    tally: _Tally,
    on_progress: Progress | None,
) -> None:
    """Count the blocks as they are written, and stop the workers when too many images have failed."""
    total = len(manifest)
    with closing(summaries):
        for summary in summaries:
            tally.add(summary)
            if on_progress is not None:
                on_progress(tally.images, total)
            _keep_budget(config, tally, total)
    assert tally.images == total, f"{tally.images} rows for {total} images"


def _keep_budget(config: PredictConfig, tally: _Tally, total: int) -> None:
    if tally.errors > config.max_error_share * total:
        limit = f"max_error_share: {config.max_error_share:g}"
    elif config.max_errors is not None and tally.errors > config.max_errors:
        limit = f"max_errors: {config.max_errors}"
    else:
        return
    first = "; ".join(f"{row.uri}: {row.message}" for row in tally.sample[:3])
    raise ErrorBudgetError(
        f"{limit} is exceeded: {tally.errors} of the first {tally.images} images failed ({total} in all); first: "
        f"{first}; the rows so far are in {config.output}; fix the images, or raise the limit, "
        "and set existing to overwrite"
    )


def _finish(output: Location, fingerprint: Fingerprint, tally: _Tally, seconds: float) -> PredictResult:
    result = PredictResult(
        images=tally.images,
        detections=tally.detections,
        errors=tally.errors,
        seconds=seconds,
        images_per_second=tally.images / seconds,
        output=output.uri,
        fingerprint=fingerprint.digest,
        error_rows=tuple(sorted(tally.sample, key=lambda row: row.uri)),
    )
    write_json(output.child(SUCCESS_FILE), asdict(result))
    return result
