"""Options of `sparse-detr data`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparse_detr.errors import require
from sparse_detr.storage.output import Replace, require_known


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportVocConfig:
    """Turn one split of a Pascal VOC folder (XML files) into COCO JSON; boxes that cannot be used are listed."""

    root: Path
    """Folder that holds Annotations, ImageSets/Main and JPEGImages."""
    split: str
    """Name of the split, as in ImageSets/Main/<split>.txt."""
    output: str
    """Path or URI of the JSON file to write."""
    existing: Replace = "refuse"
    """Choice for when there is a file at `output` already: `refuse` stops with an error, `overwrite` replaces it."""

    def __post_init__(self) -> None:
        require_known(self.existing)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeShapesConfig:
    """Generate the shapes data set: JPEGs and COCO JSON, the same for the same seed."""

    output: str
    """Folder or `s3://bucket/prefix`; gets train.json, val.json, train/, val/ and shapes.json."""
    train: int = 2000
    """Training images."""
    val: int = 300
    """Validation images."""
    size: int = 128
    """Height and width of an image in pixels."""
    seed: int = 0
    """Everything random follows from it."""
    existing: Replace = "refuse"
    """Choice for when `output` holds a data set already: `refuse` stops with an error, `overwrite` deletes
    a generated one before, with everything in train/ and val/."""

    def __post_init__(self) -> None:
        require_known(self.existing)
        for name in ("train", "val"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}; give at least 1 image")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckConfig:
    """Read annotations as training would, find the images, and say what is there and what is wrong."""

    annotations: str
    """Path or URI of a COCO JSON file."""
    images: str
    """Folder or prefix that its file names are relative to."""
    decode: bool = True
    """Also decode every image; `--no-decode` only looks whether they exist."""
