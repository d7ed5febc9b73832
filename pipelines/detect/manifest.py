"""The list of images that a run will look at, fixed before it starts.

The list is sorted (one that the user wrote keeps its order) and its rows are numbered, so the same collection gives
the same blocks of work, the same batches and the same files, whichever store holds it and however many workers share
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipelines.detect.images import Locate
from pipelines.detect.rows import SCHEMA
from sparse_detr.errors import AnnotationError, ConfigError, StorageError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.listing import list_files
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.retry import patiently
from sparse_detr.storage.s3 import explained, s3_filesystem

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""File names that a folder listing takes for images (in any case), sound or broken."""

LIST_EXTENSIONS = (".parquet", ".csv", ".txt")
"""Files that hold a list of images."""

MANIFEST_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("key", pa.string()),
        ("image_id", pa.int64()),
        ("size", pa.int64()),
        ("etag", pa.string()),
    ]
)
"""Row number in the manifest, path below the root, COCO image id where there is one, bytes and ETag where they were
listed. Columns of the user's own follow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Images below one root, or anywhere."""

    root: str
    """URI of the folder that the keys are relative to; empty where each key is a URI or path of its own."""
    table: pa.Table
    """One row an image, as MANIFEST_SCHEMA says."""

    @classmethod
    def of(
        cls,
        root: str,
        keys: Sequence[str],
        image_ids: Sequence[int] | None = None,
        *,
        sizes: Sequence[int] | None = None,
        etags: Sequence[str] | None = None,
        carried: Mapping[str, pa.ChunkedArray] | None = None,
    ) -> Manifest:
        """A manifest of these keys in this order."""
        count = len(keys)
        columns = [
            pa.array(np.arange(count), pa.int64()),
            pa.array(keys, pa.string()),
            pa.nulls(count, pa.int64()) if image_ids is None else pa.array(image_ids, pa.int64()),
            pa.nulls(count, pa.int64()) if sizes is None else pa.array(sizes, pa.int64()),
            pa.nulls(count, pa.string()) if etags is None else pa.array(etags, pa.string()),
        ]
        table = pa.table(columns, schema=MANIFEST_SCHEMA)
        for name, column in (carried or {}).items():
            table = table.append_column(name, column)
        return cls(root=root, table=table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def blocks(self, rows: int) -> list[pa.Table]:
        """The manifest cut into tables of at most so many rows."""
        return [self.table.slice(start, rows) for start in range(0, len(self), rows)]

    def only(self, rows: np.ndarray) -> Manifest:
        """The manifest of these rows alone, numbered anew."""
        table = self.table.take(pa.array(np.sort(rows)))
        place = table.schema.get_field_index("index")
        return Manifest(
            root=self.root, table=table.set_column(place, "index", pa.array(np.arange(len(rows)), pa.int64()))
        )


class Places:
    """Places of keys that are URIs or paths of their own, with one client for all of a store."""

    def __init__(self) -> None:
        self._s3 = s3_filesystem()

    def __call__(self, key: str) -> Location:
        """The place of a key.

        Raises:
            StorageError: it is not a form that we know.
        """
        return locate(key, s3=self._s3)


def places(root: str) -> Locate:
    """From a key of a manifest with this root to its place."""
    return locate(root).child if root else Places()


def build_manifest(images: str, annotations: str | None = None, *, uri_column: str = "uri") -> Manifest:
    """List the images of a collection.

    Args:
        images: folder or prefix, or one image file; or a `.txt` file with a path or URI a line, or a `.parquet` or
            `.csv` file with a column of them, whose other columns are carried along.
        annotations: COCO JSON whose `images` list names the files below the folder; None lists every image file in
            it, known by its extension.
        uri_column: name of that column.

    Raises:
        StorageError: the folder or list cannot be reached, does not exist, or holds no image.
        AnnotationError: the JSON is not a COCO file, or names no image.
        ConfigError: the list has no such column.
    """
    root = locate(images)
    check_access(root)
    if annotations is not None:
        return _named_images(root, locate(annotations))
    if root.uri.lower().endswith(LIST_EXTENSIONS) and not root.is_dir():
        return _listed_images(root, uri_column)
    if root.uri.lower().endswith(IMAGE_EXTENSIONS) and root.exists() and not root.is_dir():
        return Manifest.of(root.parent().uri, [root.uri.rpartition("/")[2]])
    if not root.is_dir():
        raise StorageError(f"images: {root.uri} is not a folder or prefix; give the one that holds the images")
    found = list_files(root, lambda name: name.lower().endswith(IMAGE_EXTENSIONS))
    if not found.names:
        raise StorageError(f"images: {root.uri} holds no image file; looked for {', '.join(IMAGE_EXTENSIONS)}")
    order = np.argsort(np.array(found.names, dtype=object), kind="stable")
    return Manifest.of(
        root.uri,
        [found.names[i] for i in order],
        sizes=[found.sizes[i] for i in order],
        etags=[found.etags[i] for i in order],
    )


def list_identity(images: str, annotations: str | None) -> str | None:
    """Hash of the file that lists the images; None where a folder is listed."""
    file = locate(images if annotations is None else annotations)
    if annotations is None and (not file.uri.lower().endswith(LIST_EXTENSIONS) or file.is_dir()):
        return None
    return hashlib.sha256(patiently(file.read_bytes)).hexdigest()[:16]


def _listed_images(file: Location, uri_column: str) -> Manifest:
    table = _read_list(file, uri_column)
    if uri_column not in table.column_names:
        raise ConfigError(
            f"uri_column: {file.uri} has no column {uri_column!r}, but {', '.join(table.column_names)}; name the one "
            "with paths or URIs"
        )
    column = table.column(uri_column).cast(pa.string())
    keys = pc.utf8_trim_whitespace(column)
    if column.null_count or pc.any(pc.equal(keys, "")).as_py():
        raise ConfigError(f"images: {file.uri} has rows without a path or URI; take them out")
    if not len(keys):
        raise StorageError(f"images: {file.uri} names no image")
    taken = [
        name for name in table.column_names if name != uri_column and name in {*SCHEMA.names, *MANIFEST_SCHEMA.names}
    ]
    if taken or len(set(table.column_names)) < table.num_columns:
        raise ConfigError(
            f"images: {file.uri} has columns that rows of detections have themselves, or twice the same name "
            f"({', '.join(taken or table.column_names)}); rename them"
        )
    carried = {name: table.column(name) for name in table.column_names if name != uri_column}
    return Manifest.of("", [_absolute(file, key) for key in keys.to_pylist()], carried=carried)


def _read_list(file: Location, uri_column: str) -> pa.Table:
    data = file.read_bytes()
    kind = file.uri.lower().rpartition(".")[2]
    try:
        with explained(file.uri):
            if kind == "parquet":
                return pq.read_table(pa.BufferReader(data))
            if kind == "csv":
                return pa.csv.read_csv(pa.BufferReader(data))
        lines = [line.strip() for line in data.decode().splitlines()]
        return pa.table({uri_column: pa.array([line for line in lines if line], pa.string())})
    except UnicodeDecodeError as error:
        raise StorageError(f"{file.uri}: not UTF-8 ({error}); give a text file with a path or URI a line") from None


def _absolute(file: Location, key: str) -> str:
    """A relative path is below the folder of the list."""
    return key if "://" in key or key.startswith(("/", "file:")) else f"{file.parent().uri.rstrip('/')}/{key}"


def _named_images(root: Location, annotations: Location) -> Manifest:
    # Boxes are not needed here, so a test set's list, which has none, is accepted too.
    try:
        content = json.loads(annotations.read_bytes())
    except ValueError as error:
        if isinstance(error, StorageError):
            raise
        raise AnnotationError(f"{annotations.uri}: not JSON ({error}); give a COCO annotation file") from None
    records = content.get("images") if isinstance(content, dict) else None
    if not isinstance(records, list) or not records:
        raise AnnotationError(f"{annotations.uri}: has no list 'images' with entries; give a COCO annotation file")
    pairs = sorted(_name_and_id(annotations.uri, position, record) for position, record in enumerate(records))
    if len({image_id for _, image_id in pairs}) != len(pairs):
        raise AnnotationError(f"{annotations.uri}: images: an id occurs twice; image ids must differ")
    return Manifest.of(root.uri, [name for name, _ in pairs], [image_id for _, image_id in pairs])


def _name_and_id(uri: str, position: int, record: Any) -> tuple[str, int]:
    name = record.get("file_name") if isinstance(record, dict) else None
    image_id = record.get("id") if isinstance(record, dict) else None
    if not isinstance(name, str) or not isinstance(image_id, int) or isinstance(image_id, bool):
        raise AnnotationError(
            f"{uri}: images[{position}]: file_name is {name!r} and id {image_id!r}; give a string and a whole number"
        )
    return name, image_id
