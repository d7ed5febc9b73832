"""The result of a batch inference, and its record `_SUCCESS.json`, which is written last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipelines.predict.output import SUCCESS_FILE, write_json
from pipelines.predict.parts import Part
from pipelines.predict.tables.release import Committed
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRow:
    """An image that could not be used."""

    uri: str
    stage: str
    """`fetch`, `decode`, `resize` or `model`."""
    type: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """Counts, time and output of a finished run."""

    images: int
    """Rows written: one an image, broken ones included."""
    detections: int
    errors: int
    """Images with an error row."""
    seconds: float
    """From the first look at the arguments to the last file, start of the workers included; of the last session alone,
    where a run was cut short."""
    images_per_second: float
    """Images of that session over its seconds."""
    output: str
    """URI of the folder with `detections/*.parquet`, `errors.parquet`, `_run.json` and `_SUCCESS.json`."""
    fingerprint: str
    error_rows: tuple[ErrorRow, ...]
    """The first of the broken images; `errors.parquet` has them all."""
    done_before: int = 0
    """Images that an earlier session of the run had done."""
    batch_size: int | None = None
    """Images that passed the model together; None where nothing was left to do."""
    table: Committed | None = None
    """The table that has the parts, where one was asked for."""


def error_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[ErrorRow, ...]:
    """From rows of `errors.parquet`."""
    return tuple(ErrorRow(**{field.name: row[field.name] for field in fields(ErrorRow)}) for row in rows)


def write_success(output: Location, result: PredictResult, parts: Sequence[Part]) -> None:
    """Say that the run is whole, and name every part with rows, size and hash."""
    listed = [{"name": part.name, "rows": part.rows, "size": part.size, "sha256": part.sha256} for part in parts]
    write_json(output.child(SUCCESS_FILE), asdict(result) | {"parts": listed})


def read_success(output: Location) -> PredictResult:
    """The result of a run that had finished before."""
    content = json.loads(patiently(output.child(SUCCESS_FILE).read_bytes))
    del content["parts"]
    errors = error_rows(content.pop("error_rows"))
    # Runs of before tables were known have no word of it.
    table = content.pop("table", None)
    return PredictResult(
        **{**content, "done_before": content["images"], "error_rows": errors},
        table=None if table is None else Committed(**table),
    )
