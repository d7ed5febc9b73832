"""Columns for what was measured beside the detections: which keep ratio, how fast, on which size, Corr."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipelines.detect.predictor import ImageResult

MEASURES_SCHEMA = pa.schema(
    [
        pa.field("keep_ratio", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("input_height", pa.int32()),
        pa.field("input_width", pa.int32()),
        pa.field("overlap", pa.list_(pa.float64())),
    ]
)
"""What `Measures` says of the image; all null where it failed."""


def with_measures(rows: pa.Table, results: Sequence[ImageResult]) -> pa.Table:
    """The rows of these results, in the same order, with the columns of MEASURES_SCHEMA."""
    found = [result.measures for result in results]
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
