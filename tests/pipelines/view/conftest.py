"""Outputs of predictions, written part by part without a model or Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    # Our packages are imported inside the fixtures: this file may be read before jaxtyping's import hook is in place.
    from sparse_detr.storage.location import Location

Rows = Sequence[dict[str, Any]]
"""Of each image: `key`, and `boxes` as (label, score, x0, y0, x1, y1), or `error` as (stage, type, message)."""

WriteRun = Callable[..., None]


def write_run(
    output: Location, root: str, rows: Rows, *, names: Sequence[str], parts: int = 2, finished: bool = True,
    total: int | None = None,
) -> None:  # fmt: skip
    """Write the files of a run over images of 128 x 96 pixels, cut into so many parts."""
    from pipelines.detect.rows import results_table
    from pipelines.predict.fingerprint import Fingerprint
    from pipelines.predict.output import SUCCESS_FILE, begin, write_json
    from pipelines.predict.parts import Stamp, write_part
    from sparse_detr.records import Classes

    fingerprint = Fingerprint(
        model_sha256="0", keep_ratio=0.3, short_side=64, max_side=96, score_threshold=0.25, max_detections=10
    )
    facts = {"model": "/m", "root": root, "total": len(rows) if total is None else total, "manifest": "beef"}
    record = begin(output, fingerprint, {"images": root}, facts)
    classes = Classes(names=tuple(names), category_ids=tuple(range(len(names))))
    size = -(-len(rows) // parts)
    written = []
    for start in range(0, len(rows), size or 1):
        results = [_result(row) for row in rows[start : start + size]]
        table = results_table(
            results, [None] * len(results), root=root, classes=classes, fingerprint=record["fingerprint"]
        )
        written.append(write_part(output, start, table, Stamp(fingerprint=record["fingerprint"], manifest="beef")))
    if finished:
        listed = [{"name": part.name, "rows": part.rows, "size": part.size} for part in written]
        whole = {"images": len(rows), "seconds": 2.0, "images_per_second": len(rows) / 2, "parts": listed}
        write_json(output.child(SUCCESS_FILE), json.loads(json.dumps(whole)))


def _result(row: dict[str, Any]) -> Any:
    import torch

    from pipelines.detect.images import ImageFailure, ImageResult
    from sparse_detr.records import Detections

    if "error" in row:
        stage, kind, message = row["error"]
        return ImageResult(index=0, key=row["key"], failure=ImageFailure(stage=stage, type=kind, message=message))
    boxes = row.get("boxes", ())
    found = Detections(
        scores=torch.tensor([box[1] for box in boxes], dtype=torch.float32),
        labels=torch.tensor([box[0] for box in boxes], dtype=torch.int64),
        boxes=torch.tensor([box[2:] for box in boxes], dtype=torch.float32).reshape(-1, 4),
    )
    return ImageResult(index=0, key=row["key"], size=(96, 128), detections=found)


@pytest.fixture(scope="session")
def make_run() -> WriteRun:
    """`write_run`."""
    return write_run
