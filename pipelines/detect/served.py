"""The model as MLflow serves it: a table of images in, a table of detections out.

`mlflow.pyfunc.load_model("models:/name@alias").predict(table)` calls this, in a process that may know nothing else of
the project; nothing of it is pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.detect.config import PredictorConfig
from pipelines.detect.images import ImageResult
from pipelines.detect.predictor import Predictor
from pipelines.tracking.model_package import IMAGE, MAX_DETECTIONS, SCORE_THRESHOLD
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError
from sparse_detr.records import Classes

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

COLUMNS = ("labels", "scores", "boxes", "error")
"""Of the result: class names (or ids, as texts, where the model has no names), scores, boxes (x1, y1, x2, y2) in
pixels of the image, and the reason where it cannot be used, else an empty text."""


class ServedDetector:
    """Detects objects in the images of a table."""

    def __init__(self, model: SparseDetr) -> None:
        """Take the model, on the CPU."""
        self._model = model

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One row an image, of the same index.

        Args:
            model_input: with the column `image`, files as bytes.
            params: `score_threshold`, `max_detections`, and `keep_ratio` (0 is the model's own).

        Raises:
            ConfigError: no such column, or a parameter out of range.
        """
        import pandas as pd

        if IMAGE not in model_input.columns:
            raise ConfigError(
                f"{IMAGE}: no such column, there are {list(model_input.columns)}; give files as bytes in it"
            )
        wanted = dict(params or {})
        keep_ratio = float(wanted.get("keep_ratio", 0.0)) or None
        predictor = Predictor(
            self._model,
            PredictorConfig(max_detections=int(wanted.get("max_detections", MAX_DETECTIONS))),
            keep_ratio=self._model.config.checked_keep_ratio(keep_ratio),
            score_threshold=float(wanted.get("score_threshold", SCORE_THRESHOLD)),
        )
        results = predictor(list(model_input[IMAGE]))
        rows = [_row(result, self._model.classes) for result in results]
        return pd.DataFrame(rows, index=model_input.index, columns=list(COLUMNS))


def _row(result: ImageResult, classes: Classes | None) -> dict[str, Any]:
    if result.detections is None:
        why = "" if result.failure is None else result.failure.message
        return {"labels": [], "scores": [], "boxes": [], "error": why}
    found = result.detections
    names = [str(label) if classes is None else classes.names[label] for label in found.labels.tolist()]
    return {"labels": names, "scores": found.scores.tolist(), "boxes": found.boxes.tolist(), "error": ""}


def _load_pyfunc(path: str) -> ServedDetector:
    """MLflow's entry: the model of a model folder."""
    return ServedDetector(SparseDetr.from_pretrained(path))
