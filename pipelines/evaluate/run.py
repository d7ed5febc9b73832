"""COCO evaluation of a model on a data set, sharded over a Ray cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.cluster.session import Connect, ray_session
from pipelines.cluster.user_errors import PackedError
from pipelines.detect.load import load_checked
from pipelines.detect.manifest import Manifest
from pipelines.detect.pool import plan_pool, with_batch_size
from pipelines.detect.predictor import PredictorFactory
from pipelines.detect.workers import USER_ERROR, Progress, Work, stream, user_error_row
from pipelines.evaluate.categories import match_categories
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.keep_ratios import RatioResult, RatioTally, ratio_plot
from pipelines.evaluate.measured_predictor import MeasuredPredictorFactory
from pipelines.evaluate.measures import measured_table
from pipelines.tracking.model_uri import pinned
from sparse_detr.data.coco import read_coco
from sparse_detr.data.coco_index import CocoIndex, DroppedBox, verify_images
from sparse_detr.errors import ImageError, require
from sparse_detr.evaluation.coco_ap import CocoMetrics
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.output import checked_file, require_file_apart

_SHOWN = 5
"""Broken images that a message names: more would not fit a screen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateResult:
    """COCO's numbers, and what it took to get them."""

    ratios: tuple[RatioResult, ...]
    """Results at each keep ratio, in the order asked for."""
    images: int
    dropped: tuple[DroppedBox, ...]
    """Bad boxes of the annotations: they do not count as objects."""
    plot: str | None
    """URI of the plot over several keep ratios."""
    seconds: float
    """Start of the workers included."""
    images_per_second: float
    """Each image counts once, however many the keep ratios."""

    @property
    def metrics(self) -> CocoMetrics:
        """COCO's numbers at the first (or only) keep ratio."""
        return self.ratios[0].metrics

    @property
    def detections(self) -> int:
        """Their number at the first keep ratio."""
        return self.ratios[0].detections

    @property
    def keep_ratio(self) -> float:
        """The first keep ratio."""
        return self.ratios[0].keep_ratio


def evaluate(
    config: EvaluateConfig, *, on_progress: Progress | None = None, connect: Connect = ray_session
) -> EvaluateResult:
    """Detect objects in the images of a data set and compare them with its boxes, as COCO does.

    Raises:
        AnnotationError: the annotations cannot be read, or name images that are missing.
        ConfigError: the model does not know a class of the data, or is dense and a keep ratio below 1.
        ImageError: an image is broken; a number for the rest would not be the data set's.
        OutputExistsError: there is a file at `output` or `plot` already and `existing` is `refuse`, or a folder.
        CheckpointError, StorageError: model, annotations, images or output cannot be used.
    """
    started = time.monotonic()
    config = replace(config, model=pinned(config.model))
    files = _checked_files(config)
    annotations, root = locate(config.annotations), locate(config.images)
    for location in (annotations, root):
        check_access(location)
    index = read_coco(annotations.uri)
    require(len(index) > 0, f"annotations: {index.source} has no images; give at least one")
    verify_images(index, root.uri)
    model = load_checked(config, config.keep_ratio or (None,))
    category_of = match_categories(model.classes, model.config.num_classes, index.classes)
    model_config = model.config
    del model  # the workers have their own
    asked = config.keep_ratio or (model_config.keep_ratio,)
    config = replace(config, keep_ratio=asked)
    tallies = {ratio: RatioTally(keep_ratio=ratio) for ratio in asked}
    for rows in _detect(config, index, on_progress, connect):
        for ratio, tally in tallies.items():
            tally.add(rows.filter(pc.equal(rows.column("keep_ratio"), ratio)), category_of)
    seconds = time.monotonic() - started
    truth = index.ground_truth()
    ratios = tuple(tally.result(truth, model_config) for tally in tallies.values())
    for output, tally in zip(files.detections, tallies.values(), strict=False):
        output.write_bytes(json.dumps(tally.results, allow_nan=False).encode())
    if files.plot is not None:
        files.plot.write_bytes(ratio_plot(ratios))
    return EvaluateResult(
        ratios=ratios,
        images=len(index),
        dropped=index.dropped,
        plot=None if files.plot is None else files.plot.uri,
        seconds=seconds,
        images_per_second=len(index) / seconds,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    detections: tuple[Location, ...]
    """One for each keep ratio; none without `output`."""
    plot: Location | None


def _checked_files(config: EvaluateConfig) -> _Files:
    """The files to write, found to be free before any work."""
    ratios = config.keep_ratio or ()
    several = len(ratios) > 1
    names: dict[str, str] = {}
    if config.output is not None:
        stem, dot, ending = config.output.rpartition(".")
        if not dot or "/" in ending:
            stem, ending = config.output, "json"
        names = {"output": config.output}
        if several:
            names = {f"output at keep_ratio {ratio:g}": f"{stem}-{ratio:g}.{ending}" for ratio in ratios}
    plot = config.plot or (f"{stem}.png" if config.output is not None else "keep_ratios.png")
    # Not the images: results may be beside them.
    inputs = {"annotations": config.annotations, "model": config.model_location().uri}
    detections = tuple(checked_file(name, config.existing, inputs=inputs) for name in names.values())
    if not several:
        return _Files(detections=detections, plot=None)
    require_file_apart(locate(plot), names, field="plot")
    return _Files(detections=detections, plot=checked_file(plot, config.existing, inputs=inputs, field="plot"))


@dataclass(frozen=True, slots=True)
class ReturnRows:
    """A sink that sends the rows to the driver."""

    def __call__(self, block: pa.Table, rows: pa.Table) -> pa.Table:
        """Pass the block on."""
        return rows

    def failed(self, error: PackedError) -> pa.Table:
        """The error alone."""
        return pa.Table.from_pylist([user_error_row(error)], schema=pa.schema([USER_ERROR]))


@dataclass(frozen=True, slots=True)
class WholeTask:
    """A source whose tasks are blocks of the manifest."""

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        """The task itself."""
        yield task


def _detect(
    config: EvaluateConfig, index: CocoIndex, on_progress: Progress | None, connect: Connect
) -> Iterator[pa.Table]:
    images = index.in_order()
    manifest = Manifest.of(locate(config.images).uri, [i.file_name for i in images], [i.id for i in images])
    ratios = config.keep_ratio or (None,)
    done = 0
    blocks = manifest.blocks(config.images_per_block)
    with connect() as session:
        pool = plan_pool(config, session, len(blocks))
        config = with_batch_size(config, PredictorFactory(config=config, keep_ratio=ratios[0]), pool)
        work = Work(
            config=config,
            predictor=MeasuredPredictorFactory(config=config, keep_ratios=ratios, overlap=config.attention_overlap),
            root=manifest.root,
            fingerprint="",
            sink=ReturnRows(),
            source=WholeTask(),
            table=measured_table,
        )
        with closing(stream(blocks, work, pool)) as tables:
            for rows in tables:
                _require_sound(rows)
                done += rows.num_rows // len(ratios)
                if on_progress is not None:
                    on_progress(done, len(manifest))
                yield rows
    assert done == len(manifest), f"{done} rows for {len(manifest)} images"


def _require_sound(rows: pa.Table) -> None:
    broken = rows.filter(pc.is_valid(rows.column("error"))).to_pylist()
    if broken:
        shown = "; ".join(f"{row['uri']}: {row['error']['message']}" for row in broken[:_SHOWN])
        raise ImageError(
            f"images: {len(broken)} of a block of {rows.num_rows} cannot be used: {shown}; fix them, or take them out "
            "of the annotations"
        )
