"""The manifest in the output folder, from which workers read the rows of their blocks.

So a task is two numbers, however many images there are, and the driver needs the manifest no more once it is written.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.detect.manifest import Manifest
from pipelines.predict.output import MANIFEST_FILE
from pipelines.predict.parts import Stamp, read_part
from sparse_detr.errors import StorageError
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.retry import PATIENCE, patiently
from sparse_detr.storage.s3 import explained

ROW_GROUP = 1024
"""Rows that are read at once: some 40 kB, of which a block of 64 images needs a sixteenth, at ten million images in a
file with 10 000 groups, whose footer takes 4 MB."""

_ROOT = b"sparse_detr.root"

TASK_SCHEMA = pa.schema([("first", pa.int64()), ("rows", pa.int64()), ("redo", pa.bool_())])
"""A block to do: its rows in the manifest; or, with `redo`, those of them that have an error row in its part."""


def write_manifest(output: Location, manifest: Manifest) -> str:
    """Write the manifest; returns its identity, a hash of all of it."""
    table = manifest.table.replace_schema_metadata({_ROOT: manifest.root})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP)
    data = buffer.getvalue()
    patiently(output.child(MANIFEST_FILE).write_bytes, data)
    return hashlib.sha256(data).hexdigest()[:16]


class StoredManifest:
    """Rows of a manifest in the output folder, read group by group."""

    def __init__(self, output: Location, patience: float = PATIENCE) -> None:
        """Open it; reads wait so many seconds for a store that is away.

        Raises:
            StorageError: it is absent or no Parquet file.
        """
        self._uri = output.child(MANIFEST_FILE).uri
        with explained(self._uri):
            self._file = pq.ParquetFile(output.child(MANIFEST_FILE).open_input())
        metadata = self._file.schema_arrow.metadata or {}
        self.root = metadata.get(_ROOT, b"").decode()
        self._group: tuple[int, pa.Table] | None = None
        self._patience = patience

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def rows(self, first: int, count: int) -> pa.Table:
        """So many rows from the given one on."""
        pieces = []
        while count > 0:
            group, start = divmod(first, ROW_GROUP)
            piece = self._read(group).slice(start, count)
            if not piece.num_rows:
                raise StorageError(f"{self._uri}: has no row {first}; it is not the manifest of this run")
            pieces.append(piece)
            first, count = first + piece.num_rows, count - piece.num_rows
        return pa.concat_tables(pieces)

    def _read(self, group: int) -> pa.Table:
        if self._group is None or self._group[0] != group:
            self._group = (group, patiently(self._read_group, group, seconds=self._patience))
        return self._group[1]

    def _read_group(self, group: int) -> pa.Table:
        with explained(self._uri):
            return self._file.read_row_group(group).replace_schema_metadata(None)


@dataclass(frozen=True, kw_only=True)
class StoredBlocks:
    """A source whose tasks name rows of the stored manifest; see TASK_SCHEMA."""

    output: str
    stamp: Stamp
    patience: float = PATIENCE

    @cached_property
    def _manifest(self) -> StoredManifest:
        return patiently(StoredManifest, locate(self.output), self.patience, seconds=self.patience)

    def __call__(self, task: pa.Table) -> Iterator[pa.Table]:
        """The blocks of a task; each says in its schema's metadata which part it belongs to."""
        for row in task.to_pylist():
            table = self._manifest.rows(row["first"], row["rows"])
            if row["redo"]:
                table = self._failed(table, row["first"], row["rows"])
            yield table.replace_schema_metadata(
                {"first": str(row["first"]), "last": str(row["first"] + row["rows"] - 1)}
            )

    def _failed(self, table: pa.Table, first: int, rows: int) -> pa.Table:
        """The rows with an error, to be read as they are now, whatever was listed."""
        part = patiently(read_part, locate(self.output), first, first + rows - 1, seconds=self.patience)
        chosen = table.take(pa.array(np.flatnonzero(pc.is_valid(part.column("error")).to_numpy())))
        place = chosen.schema.get_field_index("etag")
        return chosen.set_column(place, "etag", pa.nulls(chosen.num_rows, pa.string()))
