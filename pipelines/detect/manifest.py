"""The list of images that a run will look at, fixed before it starts.

The list is sorted and its rows are numbered, so the same collection gives the same blocks of work, the same
batches and the same files, whichever store holds it and however many workers share it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparse_detr.errors import AnnotationError, StorageError
from sparse_detr.storage.location import Location, check_access, locate

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""File names that a folder listing takes for images (in any case), sound or broken."""

MANIFEST_SCHEMA = pa.schema([("index", pa.int64()), ("key", pa.string()), ("image_id", pa.int64())])
"""Row number in the manifest, path below the root, and COCO image id where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Images below one root."""

    root: str
    """URI of the folder that the keys are relative to."""
    table: pa.Table
    """One row an image, as MANIFEST_SCHEMA says."""

    @classmethod
    def of(cls, root: str, keys: Sequence[str], image_ids: Sequence[int] | None = None) -> Manifest:
        """A manifest of these keys in this order."""
        ids = pa.nulls(len(keys), pa.int64()) if image_ids is None else pa.array(image_ids, pa.int64())
        columns = [pa.array(range(len(keys)), pa.int64()), pa.array(keys, pa.string()), ids]
        return cls(root=root, table=pa.table(columns, schema=MANIFEST_SCHEMA))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def blocks(self, rows: int) -> list[pa.Table]:
        """The manifest cut into tables of at most so many rows."""
        return [self.table.slice(start, rows) for start in range(0, len(self), rows)]


def build_manifest(images: str, annotations: str | None = None) -> Manifest:
    """List the images of a collection.

    Args:
        images: folder or prefix.
        annotations: COCO JSON whose `images` list names the files; None lists every image file below the folder,
            known by its extension.

    Raises:
        StorageError: the folder cannot be reached, does not exist, or holds no image.
        AnnotationError: the JSON is not a COCO file, or names no image.
    """
    root = locate(images)
    check_access(root)
    if annotations is not None:
        return _named_images(root, locate(annotations))
    if not root.is_dir():
        raise StorageError(f"images: {root.uri} is not a folder or prefix; give the one that holds the images")
    keys = [name for name in root.list(recursive=True) if name.lower().endswith(IMAGE_EXTENSIONS)]
    if not keys:
        raise StorageError(f"images: {root.uri} holds no image file; looked for {', '.join(IMAGE_EXTENSIONS)}")
    return Manifest.of(root.uri, sorted(keys))


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
