"""End of a run: the table of errors, the forms that were asked for, and the list of parts that says it is whole.

Everything here is made from the parts, in their order, and streamed: no file is held in memory, and a run whose driver
is killed in the middle makes it again.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.detect.rows import ERROR_TYPE, coco_entries
from pipelines.predict.config import PredictConfig
from pipelines.predict.output import COCO_RESULTS_FILE, CSV_FILE, DETECTIONS_FOLDER, ERRORS_FILE, SUCCESS_FILE
from pipelines.predict.parts import Part, part_rows, read_part
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently

_AHEAD = 16
"""Parts that are read at a time: each is one request."""

ERRORS_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("image_id", pa.int64()),
        *(pa.field(field.name, field.type) for field in ERROR_TYPE),
    ]
)
"""One row for each image that could not be used."""

CSV_COLUMNS = ("uri", "label", "category_id", "name", "score", "x0", "y0", "x1", "y1")
"""One line for each box."""


def tables(output: Location, parts: Sequence[Part]) -> Iterator[pa.Table]:
    """The parts as tables, in order; some are read ahead."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        reading: deque[Future[pa.Table]] = deque()
        for part in parts:
            reading.append(pool.submit(patiently, read_part, output, part.first, part.last))
            if len(reading) >= _AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


def write_errors(output: Location, parts: Sequence[Part], show: int) -> list[dict[str, Any]]:
    """Write the table of errors; returns the first rows of it."""
    shown: list[dict[str, Any]] = []
    with _written(output.child(ERRORS_FILE)) as path, pq.ParquetWriter(path, ERRORS_SCHEMA) as writer:
        for table in tables(output, [part for part in parts if part.errors]):
            failed = table.filter(pc.is_valid(table.column("error")))
            columns = [failed.column(name) for name in ("uri", "key", "image_id")]
            columns += failed.column("error").combine_chunks().flatten()
            rows = pa.table(columns, schema=ERRORS_SCHEMA)
            writer.write_table(rows)
            shown += rows.slice(0, show - len(shown)).to_pylist()
    return shown


def wanted(config: PredictConfig) -> tuple[str, ...]:
    """Names of the forms that were asked for."""
    forms = {COCO_RESULTS_FILE: config.coco_results, CSV_FILE: config.csv}
    return tuple(name for name, asked in forms.items() if asked)


def is_finished(output: Location, forms: Sequence[str]) -> bool:
    """Whether nothing is left to do: the run has ended, and the forms that are wanted are there."""
    return all(patiently(output.child(name).exists) for name in (SUCCESS_FILE, *forms))


def write_forms(output: Location, parts: Sequence[Part], forms: Sequence[str]) -> None:
    """Write the forms that are wanted, and anew those that are there of an earlier session."""
    for name, write in ((COCO_RESULTS_FILE, write_coco_results), (CSV_FILE, write_csv)):
        if name in forms or patiently(output.child(name).exists):
            write(output, parts)


def delete_others(output: Location, parts: Sequence[Part]) -> None:
    """Delete parts that are not the run's, such as damaged ones: who reads the whole folder must not find them."""
    folder, names = output.child(DETECTIONS_FOLDER), {part.name for part in parts}
    for name in patiently(folder.list):
        if part_rows(name) is not None and name not in names:
            patiently(folder.child(name).delete_file)


def write_coco_results(output: Location, parts: Sequence[Part]) -> Location:
    """Write `coco_results.json`, in COCO's form of detections."""
    target = output.child(COCO_RESULTS_FILE)
    with _written(target) as path, path.open("w") as stream:
        separator = "["
        for table in tables(output, parts):
            for entry in coco_entries(table):
                stream.write(separator + json.dumps(entry, allow_nan=False))
                separator = ",\n"
        stream.write("]\n" if separator != "[" else "[]\n")
    return target


def write_csv(output: Location, parts: Sequence[Part]) -> Location:
    """Write `detections.csv`, a line for each box."""
    target = output.child(CSV_FILE)
    with _written(target) as path, path.open("w", newline="") as stream:
        _write_boxes(stream, tables(output, parts))
    return target


def _write_boxes(stream: IO[str], rows: Iterator[pa.Table]) -> None:
    writer = csv.writer(stream)
    writer.writerow(CSV_COLUMNS)
    for table in rows:
        for row in table.select(["uri", "detections"]).to_pylist():
            for found in row["detections"]:
                numbers = (f"{value:.7g}" for value in (found["score"], *found["box"]))
                writer.writerow([row["uri"], found["label"], found["category_id"], found["name"], *numbers])


@contextmanager
def _written(target: Location) -> Iterator[Path]:
    """A local file to fill, which is then written to its place whole."""
    with tempfile.TemporaryDirectory(prefix="sparse-detr-") as folder:
        path = Path(folder, target.uri.rpartition("/")[2])
        yield path
        patiently(target.write_file, path)
