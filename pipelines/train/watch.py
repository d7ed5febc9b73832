"""The driver's eyes on a training: progress, lines for the user, the record of events, and the wish to stop."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import ray

from pipelines.cli.interruption import Stop
from pipelines.cluster.resources import workers_resources
from pipelines.recipes.config import TrainingConfig
from pipelines.train.engine.news import Begun, Ended, Fact, Placed, Silent
from pipelines.train.engine.progress import Listeners, StepProgress
from pipelines.train.record import RunRecord
from sparse_detr.errors import StorageError
from sparse_detr.redaction import without_secrets
from sparse_detr.storage.location import Location

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 0.3
"""Between two looks at the news: a bar that moves three times a second."""
BOX_SECONDS = 5.0
"""Longest wait for the box's answer: as much as the end of a training may take longer when it hangs."""
WAITING_SECONDS = 15.0
"""Workers that are not there after so long, and for which there is no room, wait for it."""
STARTING_SECONDS = 45.0
"""On a busy machine their processes take so long to start."""
SAVE_SECONDS = 60.0
"""Between two writings of the record while nothing happens."""
REPEAT_SECONDS = 60.0
"""Between two lines about the same wait."""


class Watch:
    """Takes in the news of a training and passes on what its listeners, its record and its user want to know."""

    def __init__(
        self, box: Any, training: TrainingConfig, output: Location, record: RunRecord, listeners: Listeners, stop: Stop
    ) -> None:
        self._box, self._training, self._output, self.record = box, training, output, record
        self._on_progress, self._on_notice, self._stop = listeners.on_progress, listeners.on_notice, stop
        self._seen = ("", 0)
        self._waits_since: float | None = time.monotonic()
        self._said = self._saved = -REPEAT_SECONDS
        self._stopping = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look in another thread; it has ended when this returns or raises.

        It must have: Ray's shutdown frees what a call of another thread still uses, and the process dies by SIGSEGV.
        """
        over = threading.Event()
        with ThreadPoolExecutor(1, thread_name_prefix="progress") as pool:
            shown = pool.submit(self._run, over)
            try:
                yield
            finally:
                over.set()
        shown.result()

    def _run(self, over: threading.Event) -> None:
        last = False
        while not last:
            # One more look once it is over: the end of the training shows too.
            last = over.wait(POLL_SECONDS)
            self.look()
            if not last:
                self._tell_of_waiting()
                self._pass_on_stop()
        self.save()

    def look(self) -> None:
        """Fetch the news; a box that is late or gone is no fault, and comes again."""
        try:
            news = ray.get(self._box.news.remote(*self._seen), timeout=BOX_SECONDS)
        except ray.exceptions.RayError:
            return
        self._seen = (news.box, news.count)
        progress: list[StepProgress] = []
        for at, fact in news.facts:
            self.record.take(at, fact)
            self._tell(fact)
            if isinstance(fact, StepProgress):
                # Of steps the last is enough; the end of an epoch is always told.
                progress = [*(one for one in progress if one.ends_epoch), fact]
        for each in progress:
            if self._on_progress is not None and not _told(self._on_progress, each):
                self._on_progress = None
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def _tell(self, fact: Fact) -> None:
        if isinstance(fact, Placed):
            self._waits_since = None
        elif isinstance(fact, Begun):
            if self.record.restarts and self.record.restarts[-1].seconds_lost is None:
                self._notice(f"The training goes on from step {fact.step} with {_workers(fact.workers)}")
            self.save()
        elif isinstance(fact, Ended):
            self._waits_since = time.monotonic()
            self._notice(f"The workers ended after step {self.record.step} ({fact.kind}): {fact.cause}")
            self.save()
        elif isinstance(fact, Silent):
            minutes = self._training.hang_minutes
            end = f"; it is restarted after {minutes:g} minutes (training.hang_minutes)" if minutes else ""
            silent = f"gives no sign of life for {fact.seconds:.0f} s, since step {fact.step}{end}"
            self._notice(f"{fact.worker} {silent if fact.seconds else 'lives again'}")

    def _tell_of_waiting(self) -> None:
        now = time.monotonic()
        waited = 0.0 if self._waits_since is None else now - self._waits_since
        if waited < WAITING_SECONDS or now - self._said < REPEAT_SECONDS:
            return
        needs = workers_resources(self._training, self._training.fewest_workers)
        try:
            has, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
        except ray.exceptions.RayError:
            return
        # Workers that start take room already.
        free = free if waited > STARTING_SECONDS else has
        if text := waiting_for(needs, has, free):
            self._said = now
            self._notice(text)

    def _pass_on_stop(self) -> None:
        if self._stop.number is None:
            return
        if self._stopping:
            tell_to_stop(self._box)  # again and again: a box that died forgets
            return
        self._stopping = True
        if not self.record.running:
            # Nothing is being learned, so there is nothing to keep: as if asked twice.
            os.kill(os.getpid(), self._stop.number)
            return
        seconds = self._training.stop_seconds
        self._notice(f"Stopping with a checkpoint, for up to {seconds:g} s; Ctrl-C once more leaves at once")
        tell_to_stop(self._box)

    def _notice(self, text: str) -> None:
        if self._on_notice is not None and not _told(self._on_notice, text):
            self._on_notice = None

    def save(self) -> None:
        """Write the record down; a store that does not take it now is asked again later."""
        self._saved = time.monotonic()
        try:
            self.record.save(self._output)
        except StorageError as error:
            logger.info("the record of events could not be written (%s); the next time tries again", error)


def _told(listener: Callable[[T], None], news: T) -> bool:
    """Whether a listener could take it; one that could not, as its terminal is gone, ends no training."""
    try:
        listener(news)
    except Exception as error:
        why = f"{type(error).__name__}: {without_secrets(str(error))}"
        logger.warning("the training goes on and is no longer shown: its display broke (%s)", why)
        return False
    return True


def tell_to_stop(box: Any) -> None:
    """Ask without waiting; a box that is too busy is asked again."""
    with suppress(ray.exceptions.RayError):
        box.ask_to_stop.remote()


def waiting_for(needs: Mapping[str, float], has: Mapping[str, float], free: Mapping[str, float]) -> str:
    """A line on what workers wait for; empty where there is room for them."""
    for kind, need in needs.items():
        if need > has.get(kind, 0):
            return f"waiting for {need:g} {kind}s, the cluster has {has.get(kind, 0):g}"
    for kind, need in needs.items():
        if need > free.get(kind, 0):
            total = has.get(kind, 0)
            return f"waiting for {need:g} {kind}s, of the cluster's {total:g} {free.get(kind, 0):g} are free"
    return ""


def _workers(number: int) -> str:
    return f"{number} worker" + ("s" if number > 1 else "")
