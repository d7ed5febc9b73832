"""Measures beside the detections, and their columns: keep ratio, time, input size, Corr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.detect.images import ImageResult
from pipelines.detect.rows import results_table
from sparse_detr.records import Classes


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredResult(ImageResult):
    """Detections of one image at one keep ratio, and the measures of the model's pass."""

    keep_ratio: float | None
    """The ratio of the pass; None is the model's own."""
    seconds: float
    """Time of the model's forward alone for the batch that the image was in, over the images of the batch."""
    input_size: tuple[int, int]
    """(height, width) in pixels of what the model saw."""
    overlap: tuple[float, ...] = ()
    """Share of the decoder's attention on kept tokens, see `attention_overlap`; empty if not asked for, or where there
    is none."""


MEASURES_SCHEMA = pa.schema(
    [
        pa.field("keep_ratio", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("input_height", pa.int32()),
        pa.field("input_width", pa.int32()),
        pa.field("overlap", pa.list_(pa.float64())),
    ]
)
"""The measures of a `MeasuredResult`; all null for an image that failed."""


def measured_table(
    results: Sequence[ImageResult],
    image_ids: Sequence[int | None],
    *,
    root: str,
    classes: Classes | None,
    fingerprint: str,
) -> pa.Table:
    """The rows of `results_table`, one an image and keep ratio, with the columns of MEASURES_SCHEMA."""
    rows = results_table(results, image_ids, root=root, classes=classes, fingerprint=fingerprint)
    found = [result if isinstance(result, MeasuredResult) else None for result in results]
    columns = (
        [None if m is None else m.keep_ratio for m in found],
        [None if m is None else m.seconds for m in found],
        [None if m is None else m.input_size[0] for m in found],
        [None if m is None else m.input_size[1] for m in found],
        [None if m is None else list(m.overlap) for m in found],
    )
    for field, values in zip(MEASURES_SCHEMA, columns, strict=True):
        rows = rows.append_column(field, pa.array(values, field.type))
    return rows
