"""Batch inference: a collection of images in, Parquet with one row an image out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.predict.config import DetectionConfig, PredictConfig
from pipelines.predict.fingerprint import (
    SUCCESS_FILE,
    Fingerprint,
    check_output,
    claim_output,
    model_sha256,
    write_json,
)
from pipelines.predict.manifest import Manifest, build_manifest
from pipelines.predict.predictor import Predictor
from pipelines.predict.sinks import write_block, write_coco_results
from pipelines.predict.workers import Rows, Work, plan_pool, stream
from pipelines.ray_session import ray_session
from sparse_detr.errors import ConfigError, ErrorBudgetError
from sparse_detr.model.checkpoint import load_model
from sparse_detr.model.sparse_detr import SparseDetr
from sparse_detr.storage import Location, check_access, locate

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

_SHOWN = 20
_SUMMARY = pa.schema([("images", pa.int64()), ("detections", pa.int64()), ("errors", pa.int64()), ("sample", pa.list_(
    pa.struct([(name, pa.string()) for name in ("uri", "stage", "type", "message")])))])  # fmt: skip
"""What a worker tells the driver of a block that it has written."""


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
    """What a finished run did."""

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
            self.sample += [ErrorRow(**error) for error in row["sample"][: _SHOWN - len(self.sample)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetSink:
    """Writes each block's rows as a file and returns their summary, so that boxes never pass through the driver."""

    output: str

    def __call__(self, first: int, rows: pa.Table) -> pa.Table:
        """Write one block."""
        write_block(locate(self.output), first, rows)
        failed = rows.filter(pc.is_valid(rows.column("error")))
        summary = {
            "images": rows.num_rows,
            "detections": pc.sum(pc.list_value_length(rows.column("detections"))).as_py() or 0,
            "errors": failed.num_rows,
            "sample": [{"uri": row["uri"], **row["error"]} for row in failed.slice(0, _SHOWN).to_pylist()],
        }
        return pa.Table.from_pylist([summary], schema=_SUMMARY)


def predict(config: PredictConfig, *, on_progress: Progress | None = None) -> PredictResult:
    """Detect objects in a collection of images and write one row an image.

    A broken image gets a row that says why, and disturbs no other. The run stops early when the model, the images
    or the output cannot be used, before any worker starts.

    Returns:
        Counts, time and where the rows lie.

    Raises:
        CheckpointError: the model folder is not one.
        ConfigError: settings that this model or this cluster cannot serve.
        StorageError: images or output out of reach, or no images there.
        OutputExistsError: the output holds another run's results and `overwrite` is False.
        ErrorBudgetError: more images failed than allowed; the rows written until then remain.
    """
    started = time.monotonic()
    output = locate(config.output)
    check_access(output, writable=True)
    fingerprint = _fingerprint(config, load_checked(config))
    check_output(output, fingerprint, overwrite=config.overwrite)
    manifest = build_manifest(config.images, config.annotations)
    tally = _Tally()
    with ray_session() as session:
        plan_pool(config, session, len(manifest))
        claim_output(output, fingerprint, _facts(config, manifest), overwrite=config.overwrite)
        work = Work(
            config=config,
            score_threshold=config.score_threshold,
            root=manifest.root,
            fingerprint=fingerprint.digest,
            sink=ParquetSink(output=output.uri),
        )
        _follow(stream(manifest, work, session), config, manifest, tally, on_progress)
    if config.coco_results:
        write_coco_results(output)
    return _finish(output, fingerprint, tally, time.monotonic() - started)


def load_checked(config: DetectionConfig) -> SparseDetr:
    """Load the model here and run it once, so that what cannot work is said before workers start.

    Raises:
        CheckpointError: the folder holds no model, or a damaged one.
        StorageError: it cannot be reached.
        ConfigError: the model cannot run at this keep ratio or size.
    """
    location = locate(config.model)
    check_access(location)
    model = load_model(location.uri)
    if model.classes is not None and len(model.classes) != model.config.num_classes:
        raise ConfigError(
            f"model: {location.uri} gives {model.config.num_classes} scores a box but names {len(model.classes)} "
            "classes; correct config.json"
        )
    below = [f"{ratio:g}" for ratio in config.ratios if ratio is not None and ratio < 1.0]
    if below and not model.config.sparse:
        raise ConfigError(
            f"keep_ratio: {', '.join(below)}, but {location.uri} was built dense (keep_ratio=1) and has no scoring "
            "network; leave keep_ratio out, or use a model trained with one below 1"
        )
    Predictor(model, config).check()
    return model


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
        f"{first}; the rows so far are in {config.output}; mend the images, or raise the limit and give overwrite"
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
