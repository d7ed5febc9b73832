"""Parts of a result: Parquet files of one row an image, each named after the rows of the manifest that it holds.

A part is written whole or not at all, and its footer says which run it is of, so a block that is done twice, because
its worker died, replaces its own part and doubles nothing.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.cluster.user_errors import PackedError
from pipelines.detect.workers import USER_ERROR, user_error_row
from pipelines.predict.output import DETECTIONS_FOLDER, SCHEMA_VERSION
from sparse_detr.errors import StorageError
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.retry import PATIENCE, patiently
from sparse_detr.storage.s3 import explained

SHOWN_ERRORS = 20
"""So many broken images are named, by a block to the driver and by the run to its caller; Parquet has them all."""

_NAME = re.compile(r"part-(\d{10,})-(\d{10,})\.parquet")
_PREFIX = "sparse_detr."


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """Marks a part as one of a run: same detections, of the same list of images."""

    fingerprint: str
    manifest: str

    def fields(self) -> Mapping[str, str]:
        """As keys of a Parquet footer."""
        return {
            f"{_PREFIX}fingerprint": self.fingerprint,
            f"{_PREFIX}manifest": self.manifest,
            f"{_PREFIX}schema": str(SCHEMA_VERSION),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that is written."""

    first: int
    """Row of its first image in the manifest."""
    last: int
    size: int
    """Bytes."""
    sha256: str
    detections: int
    errors: int

    @property
    def rows(self) -> int:
        """Images of the part."""
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """Name of its file."""
        return part_name(self.first, self.last)


def part_name(first: int, last: int) -> str:
    """Name of the part with these rows of the manifest."""
    return f"part-{first:010d}-{last:010d}.parquet"


def part_rows(name: str) -> tuple[int, int] | None:
    """First and last row of a part by its name; None for another file."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def write_part(output: Location, first: int, table: pa.Table, stamp: Stamp, *, patience: float = PATIENCE) -> Part:
    """Write a part.

    Args:
        output: folder of the run's results.
        first: number of the first row in the manifest.
        table: the rows, which follow each other in the manifest.
        stamp: of the run.
        patience: seconds to wait for a store that is away.

    Raises:
        StorageError: the output cannot be written to.
        StoreUnavailableError: the store was away for longer than `patience`.
    """
    detections = pc.sum(pc.list_value_length(table.column("detections"))).as_py() or 0
    errors = table.num_rows - table.column("error").null_count
    counts = {f"{_PREFIX}detections": str(detections), f"{_PREFIX}errors": str(errors)}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**stamp.fields(), **counts}), buffer, compression="zstd")
    data = buffer.getvalue()
    last = first + table.num_rows - 1
    patiently(output.child(DETECTIONS_FOLDER, part_name(first, last)).write_bytes, data, seconds=patience)
    sha256 = hashlib.sha256(data).hexdigest()
    return Part(first=first, last=last, size=len(data), sha256=sha256, detections=detections, errors=errors)


def inspect_part(output: Location, name: str, stamp: Stamp) -> Part | None:
    """The part of that name, read; None where it is no part of this run, or damaged."""
    rows = part_rows(name)
    if rows is None:
        return None
    data = patiently(output.child(DETECTIONS_FOLDER, name).read_bytes)
    try:
        metadata = pq.read_metadata(pa.BufferReader(data))
        footer = {key.decode(): value.decode() for key, value in (metadata.metadata or {}).items()}
        if metadata.num_rows != rows[1] - rows[0] + 1 or not stamp.fields().items() <= footer.items():
            return None
        counts = {what: int(footer[f"{_PREFIX}{what}"]) for what in ("detections", "errors")}
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    return Part(first=rows[0], last=rows[1], size=len(data), sha256=hashlib.sha256(data).hexdigest(), **counts)


def read_part(output: Location, first: int, last: int) -> pa.Table:
    """The rows of a part.

    Raises:
        StorageError: it is absent, or no Parquet file.
    """
    file = output.child(DETECTIONS_FOLDER, part_name(first, last))
    with explained(file.uri):
        # The file itself, not its folder: pyarrow would take that for a data set.
        return pq.ParquetFile(pa.BufferReader(file.read_bytes())).read().replace_schema_metadata(None)


def read_detections(output: Location) -> Iterator[pa.Table]:
    """The parts of a run, one table each, in the order of the manifest.

    Raises:
        StorageError: there is no folder of detections, or a part in it is not Parquet.
    """
    folder = output.child(DETECTIONS_FOLDER)
    if not folder.is_dir():
        raise StorageError(f"{folder.uri}: no such folder; give the output of a run")
    for name in folder.list():
        rows = part_rows(name)
        if rows is not None:
            yield read_part(output, *rows)


SUMMARY = pa.schema(
    [
        *((name, pa.int64()) for name in ("first", "last", "size")),
        ("sha256", pa.string()),
        *((name, pa.int64()) for name in ("detections", "errors")),
        ("sample", pa.list_(pa.struct([(name, pa.string()) for name in ("uri", "stage", "type", "message")]))),
        ("undone", pa.string()),
        USER_ERROR,
    ]
)
"""Summary of a block for the driver: the part that was written and its first errors; or why it was left undone; or the
user error that ends the run."""


@dataclass(frozen=True, kw_only=True)
class ParquetSink:
    """Writes each block's rows as a part and returns its summary, so that boxes never pass through the driver."""

    output: str
    stamp: Stamp
    patience: float = PATIENCE

    def __call__(self, block: pa.Table, rows: pa.Table) -> pa.Table:
        """Write one block; where it holds some rows of a part alone, those are replaced in it."""
        output, place = self._place, block.schema.metadata
        first, last = int(place[b"first"]), int(place[b"last"])
        if rows.num_rows < last - first + 1:
            part = patiently(read_part, output, first, last, seconds=self.patience)
            rows = _replaced(part, rows, [index - first for index in block.column("index").to_pylist()])
        written = write_part(output, first, rows, self.stamp, patience=self.patience)
        failed = rows.filter(pc.is_valid(rows.column("error"))).slice(0, SHOWN_ERRORS)
        sample = [{"uri": row["uri"], **row["error"]} for row in failed.select(["uri", "error"]).to_pylist()]
        return pa.Table.from_pylist([asdict(written) | {"sample": sample}], schema=SUMMARY)

    @cached_property
    def _place(self) -> Location:
        """The output, whose client keeps its connections from block to block."""
        return locate(self.output)

    def failed(self, error: PackedError) -> pa.Table:
        """A store that is away leaves a block undone; any other user error ends the run."""
        kind, message = error
        row = {"undone": message} if kind == "StoreUnavailableError" else user_error_row(error)
        return pa.Table.from_pylist([row], schema=SUMMARY)


def _replaced(part: pa.Table, rows: pa.Table, places: Sequence[int]) -> pa.Table:
    """The part with these rows in those places."""
    fresh = {place: part.num_rows + row for row, place in enumerate(places)}
    order = [fresh.get(place, place) for place in range(part.num_rows)]
    return pa.concat_tables([part, rows.cast(part.schema)]).take(pa.array(order, pa.int64()))
