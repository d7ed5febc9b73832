"""An index of images and boxes in COCO form: what `read_coco` returns and what evaluation gets back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sparse_detr.errors import AnnotationError
from sparse_detr.records import Classes
from sparse_detr.storage.location import Location, locate

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CocoImage:
    """One image and its N kept annotations, crowd regions included."""

    id: int
    file_name: str
    """Relative to the folder of images."""
    height: int
    width: int
    boxes: Float64[np.ndarray, "N 4"]
    """xyxy, pixels, clipped to the image."""
    labels: Int64[np.ndarray, " N"]
    """Contiguous class indices."""
    areas: Float64[np.ndarray, " N"]
    """Square pixels of the object as the file states them; of the box where it states none."""
    crowd: Bool[np.ndarray, " N"]
    """True for a region of many objects (`iscrowd`): ignored in evaluation, never a training target."""
    annotation_ids: Int64[np.ndarray, " N"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedBox:
    """An annotation that was left out, and why."""

    file_name: str
    annotation_id: int
    box: tuple[object, ...]
    """As the file has it."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file_name}: annotation {self.annotation_id}: box {list(self.box)} {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CocoIndex:
    """The annotations of a data set."""

    images: tuple[CocoImage, ...]
    """In the order of the file."""
    classes: Classes
    dropped: tuple[DroppedBox, ...]
    """Bad boxes that were left out."""
    source: str
    """URI of the annotation file."""

    def __len__(self) -> int:
        return len(self.images)

    def in_order(self) -> list[CocoImage]:
        """The images by file name and id, as every evaluation takes them: the same batches give the same numbers, to
        the last digit."""
        return sorted(self.images, key=lambda image: (image.file_name, image.id))

    def digest(self) -> str:
        """SHA-256 of the images' names and sizes and of their objects; what tells one data set from another."""
        found = hashlib.sha256()
        for image in self.in_order():
            found.update(f"{image.file_name}\0{image.height}\0{image.width}\0".encode())
            for column in (image.boxes, image.labels, image.crowd):
                found.update(np.ascontiguousarray(column).tobytes())
        found.update("\0".join(self.classes.names).encode())
        return found.hexdigest()

    def ground_truth(self) -> dict[str, Any]:
        """The kept annotations in COCO form, as pycocotools wants them (`bbox` is xywh in pixels)."""
        return {
            "info": {},
            "images": [
                {"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in self.images
            ],
            "annotations": [row for image in self.images for row in self._rows(image)],
            "categories": [
                {"id": i, "name": n} for i, n in zip(self.classes.category_ids, self.classes.names, strict=True)
            ],
        }

    def _rows(self, image: CocoImage) -> Iterator[dict[str, Any]]:
        for row, (x0, y0, x1, y1) in enumerate(image.boxes.tolist()):
            yield {
                "id": int(image.annotation_ids[row]),
                "image_id": image.id,
                "category_id": self.classes.category_ids[int(image.labels[row])],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(image.areas[row]),
                "iscrowd": int(image.crowd[row]),
            }


def verify_images(index: CocoIndex, images_uri: str | Path) -> None:
    """Check that every image of the index is in the folder.

    Raises:
        AnnotationError: some are missing; the message names the first and the number of all.
        StorageError: the folder cannot be listed.
    """
    folder = locate(images_uri)
    deep = any("/" in image.file_name for image in index.images)
    present = set(folder.list(recursive=deep))
    missing = [image.file_name for image in index.images if image.file_name not in present]
    if missing:
        names = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise AnnotationError(
            f"{index.source}: {len(missing)} of {len(index)} images are not in {folder.uri}: {names}; "
            "correct the folder, or take these images out of the annotations"
        )


def write_coco(destination: str | Path | Location, data: Mapping[str, Any]) -> None:
    """Write annotations in COCO form as JSON, whole or not at all. NaN and infinity are refused (ValueError)."""
    location = destination if isinstance(destination, Location) else locate(destination)
    location.write_bytes(json.dumps(data, allow_nan=False, separators=(",", ":")).encode())
