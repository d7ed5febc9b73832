"""Options of a batch inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.detect.config import DetectionConfig, require_keep_ratio
from pipelines.detect.tiles import TileGrid
from pipelines.predict.budget import ErrorBudget
from sparse_detr.errors import require
from sparse_detr.storage.output import Existing, require_known


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig(DetectionConfig):
    """Which images of a collection, and which detections of them."""

    images: str
    """Folder or `s3://` prefix of the images, one image file, or a list of them (`.txt`, `.parquet`, `.csv`)."""
    uri_column: str = "uri"
    """Column with paths or URIs, where `images` is a `.parquet` or `.csv` file; its other columns are carried along."""
    keep_ratio: float | None = None
    """Share of each image's tokens that the encoder updates, in (0, 1]; by default the ratio of the training."""
    score_threshold: float = 0.3
    """Boxes below this score are left out; 0 keeps all."""
    tile: int | None = None
    """Side of square tiles, pixels, that a larger image is also cut into, for objects that are small in it."""
    overlap: float = 0.2
    """Share of a tile's side that neighbouring tiles have in common."""
    limit: int | None = None
    """Only so many images, the first of the list."""
    sample: int | None = None
    """Only so many images, chosen by chance, the same ones each time: for a look first."""

    def __post_init__(self) -> None:
        DetectionConfig.__post_init__(self)
        if self.keep_ratio is not None:
            require_keep_ratio(self.keep_ratio)
        require(0.0 <= self.score_threshold <= 1.0, f"score_threshold: {self.score_threshold}; give 0 to 1")
        self.tiles()
        for name in ("limit", "sample"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}: {value}; give at least 1, or leave it out")
        require(
            self.limit is None or self.sample is None,
            f"limit: {self.limit} beside sample: {self.sample}; give one of the two",
        )

    def tiles(self) -> TileGrid | None:
        """The tiles that were asked for."""
        return None if self.tile is None else TileGrid(side=self.tile, overlap=self.overlap)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictConfig(InferenceConfig):
    """Detection into Parquet, one row an image, whatever the image is; or into pictures of a few images."""

    output: str = ""
    """Folder or `s3://` prefix for the results; it must not hold those of another run. On a cluster of several
    machines a folder must be on a disk that they share, as must `model` and `images`."""
    draw: str | None = None
    """Folder for pictures of a few images with their boxes, in place of `output`: in this process, without a
    cluster."""
    existing: Existing = "resume"
    """Choice for when `output` holds results of a run already: `resume` goes on where that was cut short, if it had
    the same model, images and settings; `refuse` stops with an error; `overwrite` deletes them, and nothing else.
    Pictures of `draw` that are there are replaced by `overwrite` alone."""
    retry_errors: bool = False
    """Do images with an error row again, as they are now, and replace their rows."""
    error_budget: str = "10%"
    """Stop once more images fail than this share of all (rounded up to whole images), such as `1%`, or this number; a
    share also stops a run whose failures until then leave no doubt that it will be exceeded. `100%` never stops."""
    coco_results: bool = False
    """Also write `coco_results.json`, the form that COCO's evaluation reads; needs `annotations` for image ids."""
    csv: bool = False
    """Also write `detections.csv`, a line a box."""
    table: Literal["iceberg", "delta"] | None = None
    """Also commit the parts, as they are and once, to a table of this kind; it needs `sparse-detr[iceberg]` or
    `sparse-detr[delta]`."""
    table_name: str | None = None
    """Name of the Iceberg table, `namespace.table`; it is created if absent."""
    catalog: str = "default"
    """Name of the Iceberg catalog in pyiceberg's configuration, such as `PYICEBERG_CATALOG__DEFAULT__URI`."""
    table_uri: str | None = None
    """Folder of the Delta table, which must hold `output`; by default the folder of the parts itself."""
    dry_run: bool = False
    """Write nothing: count the images, show the first, what would be booked, and how long it would take by a measured
    sample."""

    def __post_init__(self) -> None:
        InferenceConfig.__post_init__(self)
        require_known(self.existing, resumable=True)
        self._require_one_purpose()
        self._require_table_of_its_kind()
        ErrorBudget.parse(self.error_budget)
        require(
            not self.retry_errors or self.existing == "resume",
            f"retry_errors: True with existing: {self.existing!r}; it works on the results of a run, so set existing "
            "to resume",
        )
        require(
            not self.coco_results or self.annotations is not None,
            "coco_results: True without annotations; image ids come from there, so name a COCO JSON",
        )

    def _require_one_purpose(self) -> None:
        if self.draw is None:
            require(
                bool(self.output) or self.dry_run,
                "output: it is empty; give a folder or an s3:// URI (or a folder for a few pictures as draw, or "
                "dry_run, which writes nothing)",
            )
            return
        require(bool(self.draw), "draw: it is empty; give a folder for the pictures")
        for name in ("output", "dry_run", "retry_errors", "coco_results", "csv", "table"):
            value = getattr(self, name)
            require(
                not value, f"{name}: {value} beside draw: {self.draw}; draw writes pictures alone, give one of the two"
            )

    def _require_table_of_its_kind(self) -> None:
        require(
            self.table in (None, "iceberg", "delta"), f"table: {self.table!r} is not known; choose iceberg or delta"
        )
        require(
            self.table is None or bool(self.output),
            f"table: {self.table} without output; give a folder or an s3:// URI",
        )
        for name, kind in (("table_name", "iceberg"), ("table_uri", "delta")):
            value = getattr(self, name)
            require(
                value is None or self.table == kind, f"{name}: {value!r} is for table: {kind}; it is {self.table!r}"
            )
        words = (self.table_name or "").split(".")
        require(
            self.table != "iceberg" or (len(words) > 1 and all(words)),
            f"table_name: {self.table_name!r}; give namespace.table, such as vision.detections",
        )
