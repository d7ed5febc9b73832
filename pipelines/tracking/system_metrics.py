"""Processors, memory, disks, network and GPUs of a machine as curves of its run.

MLflow's own monitor ends for good at the first call that its server does not answer. So its collectors are read here,
and the points go the way of all others, which outlasts such a gap.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

SAMPLE_SECONDS, SAMPLES_A_POINT = 10.0, 3
"""A point is the mean of so many samples."""


@contextmanager
def system_metrics(
    tracker: Tracker, node: str, *, sample_seconds: float = SAMPLE_SECONDS, samples: int = SAMPLES_A_POINT
) -> Iterator[None]:
    """Write `system/<node>/cpu_utilization_percentage` and the like while this is entered; the step is the time, in s.

    Args:
        tracker: one without a run gets nothing.
        node: names the machine in the run.
        sample_seconds: between two samples.
        samples: that make a point.
    """
    if tracker.run_id is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(
        target=_collect, args=(tracker, node, over, sample_seconds, samples), name="system-metrics", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _collect(tracker: Tracker, node: str, over: threading.Event, sample_seconds: float, samples: int) -> None:
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitors: list[Any] = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            tracker.run_id, tracking_uri=tracker.uri
        ).monitors
        while not over.is_set():
            for _ in range(samples):
                if over.wait(sample_seconds):
                    break
                for monitor in monitors:
                    monitor.collect_metrics()
            found = {name: value for monitor in monitors for name, value in monitor.aggregate_metrics().items()}
            for monitor in monitors:
                monitor.clear_metrics()
            tracker.metrics({f"system/{node}/{name}": value for name, value in found.items()}, int(time.time()))
    except Exception as error:  # The training is worth more than curves of its machine.
        logger.warning("no more system metrics of %s (%s: %s)", node, type(error).__name__, error)
