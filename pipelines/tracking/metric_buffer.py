"""Points of curves on their way to MLflow: kept while its server is away, then written in order, and once."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.tracking.mlflow_store import as_keys, cut

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

_POINTS_A_CALL = 1000
"""MLflow's own limit of a batch."""
_LIMIT = 50_000
"""Days without a server take some megabytes; then the oldest points go."""


class MetricBuffer:
    """Points that are not written yet; several threads may add some.

    A point that is sent twice, because an answer was lost, has the same time, step and value: MLflow keeps one.

    Args:
        run_id: of the run that they belong to.
        resumed: whether an earlier process wrote to that run. What it has up to some step is not written again, since a
            training that goes on from a checkpoint does some steps anew, with the same numbers.
    """

    def __init__(self, run_id: str, *, resumed: bool = False) -> None:
        self._run_id = run_id
        self._pending: list[Metric] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._resumed = resumed
        self._known: dict[str, int] = {}
        """Last step of each curve before this process."""
        self.not_finite = 0
        """Points that were NaN or infinite, and so left out."""
        self.lost = 0
        """Points beyond the limit, or that MLflow refuses."""

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one point of every curve."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        keys = as_keys(metrics)
        numbers = {keys[name]: float(value) for name, value in metrics.items()}
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        with self._lock:
            self.not_finite += len(numbers) - len(finite)
            self._pending += [Metric(key, value, now, step) for key, value in finite.items()]
            self.lost += max(0, len(self._pending) - _LIMIT)
            del self._pending[:-_LIMIT]

    def write(self, client: MlflowClient) -> bool:
        """Write all that there is; whatever this raises, nothing is lost. True, as something that can be told."""
        # One at a time: threads that add points may find the server slow together.
        with self._writing:
            if self._resumed:
                # Its public functions give the whole history of a curve, which may be hundreds of thousands of points.
                self._known = {m.key: m.step for m in client.get_run(self._run_id).data._metric_objs or ()}
                self._resumed = False
            with self._lock:
                batch = list(self._pending)
            new = [point for point in batch if point.step > self._known.get(point.key, -1)]
            for start in range(0, len(new), _POINTS_A_CALL):
                self._send(client, new[start : start + _POINTS_A_CALL])
            written = set(map(id, batch))
            with self._lock:
                self._pending = [point for point in self._pending if id(point) not in written]
        return True

    def _send(self, client: MlflowClient, points: Sequence[Metric]) -> None:
        """Write points; one that MLflow refuses must not keep back the others for ever."""
        from mlflow.exceptions import MlflowException

        try:
            client.log_batch(self._run_id, metrics=points)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(points) == 1:
                self.lost += 1
                logger.warning("MLflow refuses the metric %s: %s", points[0].key, cut(str(error), 300))
                return
            half = len(points) // 2
            self._send(client, points[:half])
            self._send(client, points[half:])
