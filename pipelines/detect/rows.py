"""Detections as rows of a table: one row an image, with its boxes or its error."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.detect.images import ImageResult
from sparse_detr.errors import ConfigError
from sparse_detr.evaluation.coco_ap import coco_entry
from sparse_detr.records import Classes, Detections

DETECTION_TYPE = pa.struct(
    [
        pa.field("label", pa.int32(), nullable=False),
        pa.field("category_id", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("box", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
    ]
)
"""One box: contiguous class index, the data set's id and name of the class, score, and [x0, y0, x1, y1] in pixels
of the image as it is shown (EXIF rotation applied); a box may reach a little over the image's edge."""


ERROR_TYPE = pa.struct([(name, pa.string()) for name in ("stage", "type", "message")])
"""Why an image has no detections; the stages are fetch, decode, resize and model."""


SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("image_id", pa.int64()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("detections", pa.list_(pa.field("element", DETECTION_TYPE, nullable=False)), nullable=False),
        pa.field("error", ERROR_TYPE),
        pa.field("fingerprint", pa.string(), nullable=False),
    ]
)
"""One row an image. `detections` is empty where `error` is not null; `image_id` is null without COCO annotations;
height and width are null where the image could not be decoded."""


def results_table(
    results: Sequence[ImageResult],
    image_ids: Sequence[int | None],
    *,
    root: str,
    classes: Classes | None,
    fingerprint: str,
) -> pa.Table:
    """Rows of SCHEMA, one for each result, in order. A model without class names gets its indices as names."""
    failures = [None if r.failure is None else _error_row(r) for r in results]
    columns = {
        "uri": pa.array([f"{root.rstrip('/')}/{r.key}" if root else r.key for r in results], pa.string()),
        "key": pa.array([r.key for r in results], pa.string()),
        "image_id": pa.array(image_ids, pa.int64()),
        "height": pa.array([None if r.size is None else r.size[0] for r in results], pa.int32()),
        "width": pa.array([None if r.size is None else r.size[1] for r in results], pa.int32()),
        "detections": _detection_lists([r.detections for r in results], classes),
        "error": pa.array(failures, ERROR_TYPE),
        "fingerprint": pa.array([fingerprint] * len(results), pa.string()),
    }
    return pa.table(columns, schema=SCHEMA)


def coco_entries(table: pa.Table) -> list[dict[str, Any]]:
    """Entries of a COCO results file for the boxes of these rows, which already bear their category ids."""
    return [
        coco_entry(row["image_id"], found["category_id"], found["box"], found["score"])
        for row in table.select(["image_id", "detections"]).to_pylist()
        for found in row["detections"]
    ]


def to_coco(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Entries of a COCO results file for one row, as Ray Data, pyarrow or pandas give it; none for an error row.

    Raises:
        ConfigError: the row has no image id.
    """
    if row["image_id"] is None or row["image_id"] != row["image_id"]:  # pandas gives NaN
        raise ConfigError(
            f"image_id: {row['uri']} has none; detect with annotations, whose ids COCO's evaluation knows, or give the "
            "row an id of your own"
        )
    # pandas gives arrays and numbers of numpy's, which JSON does not take.
    return [
        coco_entry(
            int(row["image_id"]), int(found["category_id"]), [float(x) for x in found["box"]], float(found["score"])
        )
        for found in row["detections"]
    ]


def to_supervision(row: Mapping[str, Any]) -> Any:
    """One row as `supervision.Detections`, with `class_name` and `category_id` in its data; empty for an error row.

    Raises:
        ImportError: supervision is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Without OpenCV it says that its own drawing is slower; detections are not drawn here.
            warnings.simplefilter("ignore", UserWarning)
            import supervision
    except ImportError as error:
        raise ImportError(
            f"supervision cannot be imported ({error}); run `pip install 'sparse-detr[supervision]'`"
        ) from error
    found = list(row["detections"])
    return supervision.Detections(
        xyxy=np.array([box["box"] for box in found], np.float32).reshape(-1, 4),
        confidence=np.array([box["score"] for box in found], np.float32),
        class_id=np.array([box["label"] for box in found], np.int64),
        data={
            "class_name": np.array([box["name"] for box in found], np.str_),
            "category_id": np.array([box["category_id"] for box in found], np.int64),
        },
    )


def _error_row(result: ImageResult) -> dict[str, str]:
    assert result.failure is not None
    return {"stage": result.failure.stage, "type": result.failure.type, "message": result.failure.message}


def _detection_lists(detections: Sequence[Detections | None], classes: Classes | None) -> pa.ListArray:
    """Columns are built whole: a Python object for each of millions of boxes would cost more than the model."""
    present = [d for d in detections if d is not None]
    counts = [0 if d is None else d.scores.shape[0] for d in detections]
    labels = np.concatenate([np.zeros(0, np.int64), *(d.labels.numpy() for d in present)])
    scores = np.concatenate([np.zeros(0, np.float32), *(d.scores.numpy() for d in present)])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(d.boxes.numpy() for d in present)])
    names, ids = _names_and_ids(classes, labels)
    columns = [
        pa.array(labels, pa.int32()),
        ids,
        names,
        pa.array(scores, pa.float32()),
        pa.ListArray.from_arrays(
            pa.array(np.arange(0, 4 * len(labels) + 1, 4), pa.int32()),
            pa.array(boxes.astype(np.float32).reshape(-1)),
            type=DETECTION_TYPE.field("box").type,
        ),
    ]
    fields = [DETECTION_TYPE.field(i) for i in range(DETECTION_TYPE.num_fields)]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    values = pa.StructArray.from_arrays(columns, fields=fields)
    return pa.ListArray.from_arrays(offsets, values, type=SCHEMA.field("detections").type)


def _names_and_ids(classes: Classes | None, labels: np.ndarray) -> tuple[pa.Array, pa.Array]:
    if classes is None:
        return pa.array([str(label) for label in labels.tolist()], pa.string()), pa.array(labels, pa.int64())
    names = pa.array(classes.names, pa.string()).take(pa.array(labels))
    return names, pa.array(classes.category_ids, pa.int64()).take(pa.array(labels))
