"""Results as tables: Parquet files of one row an image, and COCO's JSON form of detections.

A file is named after the manifest rows it holds, and is written whole or not at all: a block of work that is
done twice, because its worker died, replaces its own file and doubles nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.detect.rows import SCHEMA, coco_entries
from pipelines.predict.output import (
    COCO_RESULTS_FILE,
    DETECTIONS_FOLDER,
)
from sparse_detr.errors import StorageError
from sparse_detr.storage.location import Location, locate


def write_block(output: Location, first: int, table: pa.Table) -> None:
    """Write rows of SCHEMA as one Parquet file.

    Args:
        output: folder of the run's results.
        first: number of the first row in the manifest.
        table: the rows, which follow each other in the manifest.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    name = f"part-{first:010d}-{first + table.num_rows - 1:010d}.parquet"
    output.child(DETECTIONS_FOLDER, name).write_bytes(buffer.getvalue())


def read_detections(output: Location) -> Iterator[pa.Table]:
    """The result files of a run, one table each, in the order of the manifest.

    Raises:
        StorageError: there is no folder of detections, or a file in it is not Parquet.
    """
    folder = output.child(DETECTIONS_FOLDER)
    if not folder.is_dir():
        raise StorageError(f"{folder.uri}: no such folder; give the output of a run")
    for name in folder.list():
        if not name.endswith(".parquet"):
            continue
        try:
            with folder.child(name).open_input() as stream:
                yield pq.read_table(stream, schema=SCHEMA)
        except pa.ArrowException as error:
            raise StorageError(f"{folder.child(name).uri}: cannot be read as Parquet ({error})") from None


def write_coco_results(output: Location) -> Location:
    """Gather the rows of a finished run into `coco_results.json`; returns its location."""
    target = output.child(COCO_RESULTS_FILE)
    entries = [json.dumps(entry, allow_nan=False) for table in read_detections(output) for entry in coco_entries(table)]
    target.write_bytes(("[" + ",\n".join(entries) + "]\n").encode())
    return target


SHOWN_ERRORS = 20
"""So many broken images are named, by a block to the driver and by the run to its caller; Parquet has them all."""


_SUMMARY = pa.schema([("images", pa.int64()), ("detections", pa.int64()), ("errors", pa.int64()), ("sample", pa.list_(
    pa.struct([(name, pa.string()) for name in ("uri", "stage", "type", "message")])))])  # fmt: skip
"""Summary of a written block, which the worker sends to the driver."""


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
            "sample": [{"uri": row["uri"], **row["error"]} for row in failed.slice(0, SHOWN_ERRORS).to_pylist()],
        }
        return pa.Table.from_pylist([summary], schema=_SUMMARY)
