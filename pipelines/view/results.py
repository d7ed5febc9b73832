"""Results of a prediction, opened: what its record says, and its parts one after the other."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from pipelines.predict.output import RUN_FILE, SUCCESS_FILE, Record
from pipelines.predict.parts import Stamp, part_rows, read_part
from pipelines.predict.resume import Span, done_parts
from sparse_detr.errors import CheckpointError, StorageError
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently

_AHEAD = 16
"""Parts that are read at a time: each is one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Results of a run, finished or not."""

    output: Location
    record: Record
    """Content of `_run.json`."""
    success: Record | None
    """Content of `_SUCCESS.json` but for the parts; None where the run is not finished."""
    spans: tuple[Span, ...]
    """First and last row of each part, in order."""
    total: int
    """Images of the whole run."""

    def tables(self) -> Iterator[tuple[int, pa.Table]]:
        """Each part with the number of its first row; a few are read ahead, and none is kept.

        Raises:
            StorageError: a part is absent, no Parquet file, or not whole.
        """
        with ThreadPoolExecutor(_AHEAD) as pool:
            reading: deque[tuple[Span, Future[pa.Table]]] = deque()
            for span in self.spans:
                reading.append((span, pool.submit(patiently, read_part, self.output, *span)))
                if len(reading) >= _AHEAD:
                    yield self._whole(*reading.popleft())
            while reading:
                yield self._whole(*reading.popleft())

    def _whole(self, span: Span, reading: Future[pa.Table]) -> tuple[int, pa.Table]:
        (first, last), table = span, reading.result()
        if table.num_rows != last - first + 1:
            raise StorageError(f"{self.output.uri}: the part of rows {first} to {last} has {table.num_rows} rows")
        return first, table


def open_results(output: Location) -> Results:
    """The results of a run: those that `_SUCCESS.json` names, or without it the parts that are done.

    Raises:
        StorageError: the folder holds no run.
        CheckpointError: the run is of another version.
    """
    record = _json(output, RUN_FILE, ("settings", "collection", "fingerprint", "manifest", "total"))
    if not output.child(SUCCESS_FILE).exists():
        parts = done_parts(output, Stamp(fingerprint=record["fingerprint"], manifest=record["manifest"]))
        spans = tuple((part.first, part.last) for part in parts)
        return Results(output=output, record=record, success=None, spans=spans, total=record["total"])
    success = dict(_json(output, SUCCESS_FILE, ("images", "parts", "seconds", "images_per_second")))
    found = (part_rows(part["name"]) for part in success.pop("parts"))
    spans = tuple(span for span in found if span is not None)
    return Results(output=output, record=record, success=success, spans=spans, total=success["images"])


def _json(output: Location, name: str, fields: tuple[str, ...]) -> Record:
    file = output.child(name)
    if not file.exists():
        raise StorageError(f"output: {output.uri} holds no {name}; give the output folder of a predict run")
    try:
        content = json.loads(patiently(file.read_bytes))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file.uri}: not JSON ({error}); run predict again") from None
    lacking = [field for field in fields if not isinstance(content, dict) or field not in content]
    if lacking:
        raise CheckpointError(f"{file.uri}: has no {lacking[0]}; it is of another version, run predict again")
    return dict(content)
