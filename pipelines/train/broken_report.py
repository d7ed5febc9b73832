"""Lists the training images that a run skips, in its output and in MLflow."""

from __future__ import annotations

import logging

from pipelines.tracking.tracker import Tracker
from pipelines.train.engine.hooks import NoHooks, Trained
from pipelines.train.engine.progress import StepProgress
from pipelines.train.output import write_broken_images
from sparse_detr.errors import StorageError
from sparse_detr.storage.location import Location

logger = logging.getLogger(__name__)

TEXT = "broken_images.txt"
"""Artifact of the MLflow run."""


class BrokenReport(NoHooks):
    """Writes the list after every epoch that made it longer; for rank 0."""

    def __init__(self, output: Location, tracker: Tracker) -> None:
        self._output, self._tracker = output, tracker
        self._written = 0

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        """Write what is new; a store that is away gets it after the next epoch."""
        images = loop.broken.found
        if len(images) == self._written:
            return
        self._tracker.text("\n".join(f"{image.file}: {image.reason}" for image in images), TEXT)
        try:
            write_broken_images(self._output, images)
        except StorageError as error:
            logger.warning("the list of broken images could not be written (%s); the training goes on", error)
        else:
            self._written = len(images)
