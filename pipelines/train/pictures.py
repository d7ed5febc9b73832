"""Pictures of a training in MLflow: what the model sees in the same few validation images, epoch after epoch."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.recipes.config import RunConfig
from pipelines.tracking.tracker import Tracker
from pipelines.train.engine.hooks import NoHooks, Trained
from sparse_detr.records import Targets
from sparse_detr.redaction import without_secrets
from sparse_detr.storage.location import locate

if TYPE_CHECKING:
    from pipelines.train.engine.progress import StepProgress
    from sparse_detr.visualize import Picture

logger = logging.getLogger(__name__)

FOLDER = "explain"
"""Artifact folder; below it one folder an epoch."""

_SHOWS = 10
"""Pictures are drawn after about so many evaluations of a run: they then cost little, however long the run is."""
_TILE = 180
"""Pixels: a sheet of four levels is then about 1000 wide, which MLflow shows without scaling."""
_THRESHOLD = 0.3
_RICH = 3
"""Images with at least so many objects come first: there is more to see."""


Show = Callable[[Trained, int], None]
"""Shows what the loop's model sees after an epoch."""


class TrainingPictures(NoHooks):
    """Hooks of the loop that send the pictures; for rank 0, beside other hooks or alone.

    Whatever fails here is logged once and the training goes on: it is worth more than its pictures.

    Args:
        config: the run that they are of.
        tracker: the pictures' destination; one without a run gets none.
        show: called when pictures are due; None draws and sends them.
    """

    def __init__(self, config: RunConfig, tracker: Tracker, show: Show | None = None) -> None:
        training = config.training
        self._config = config
        self._tracker = tracker
        self._count = training.explain_images if tracker.run_id is not None else 0
        evaluations = math.ceil(training.epochs / training.evaluate_every)
        self._interval = math.ceil(evaluations / _SHOWS)
        self._images: list[tuple[str, Picture, Targets]] | None = None
        self._failed = False
        self._show = show or self._draw_and_send

    def epoch_done(self, loop: Trained, progress: StepProgress) -> None:
        """After an evaluation whose turn it is: draw and send."""
        if self._count and self._is_due(progress):
            try:
                self._show(loop, progress.epoch)
            except Exception as error:
                if not self._failed:
                    why = f"{type(error).__name__}: {without_secrets(str(error))}"
                    logger.warning("no pictures of epoch %d (%s); the training goes on", progress.epoch, why)
                self._failed = True

    def _is_due(self, progress: StepProgress) -> bool:
        every = self._config.training.evaluate_every
        in_turn = progress.epoch % every == 0 and (progress.epoch // every - 1) % self._interval == 0
        return in_turn or progress.epoch == progress.epochs

    def _draw_and_send(self, loop: Trained, epoch: int) -> None:
        from pipelines.explain.run import explain_image

        if self._images is None:
            self._images = choose_images(loop.data.val.index.ground_truth(), self._config.data.val_images, self._count)
        data = self._config.data
        with tempfile.TemporaryDirectory(prefix="sparse-detr-") as folder:
            for name, image, truth in self._images:
                title = f"{name}   after epoch {epoch}, keep ratio {self._config.model.keep_ratio:g}"
                found = explain_image(
                    loop.eval_model,
                    image,
                    title=title,
                    size=data.image_size,
                    threshold=_THRESHOLD,
                    truth=truth,
                    tile=_TILE,
                )
                Path(folder, f"{_plain(name)}.png").write_bytes(found.png())
            self._tracker.artifact(folder, f"{FOLDER}/epoch_{epoch:04d}")


def choose_images(ground_truth: dict[str, Any], root: str, count: int) -> list[tuple[str, Picture, Targets]]:
    """The first validation images with several objects, or the first ones: name, pixels, objects."""
    from sparse_detr.data.decode import decode_image

    objects: dict[int, list[list[float]]] = {image["id"]: [] for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        objects[annotation["image_id"]].append(annotation["bbox"])
    images = sorted(ground_truth["images"], key=lambda image: len(objects[image["id"]]) < _RICH)
    chosen = []
    for image in images[:count]:
        pixels = decode_image(locate(root).child(image["file_name"]).read_bytes(), name=image["file_name"])
        chosen.append((image["file_name"], pixels, _truth(objects[image["id"]], pixels)))
    return chosen


def _truth(boxes: list[list[float]], image: Picture) -> Targets:
    """COCO's boxes as targets; their labels are not drawn."""
    height, width = image.shape[:2]
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    x, y, w, h = corners.unbind(1)
    relative = torch.stack([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height], dim=1)
    return Targets(labels=torch.zeros(len(boxes), dtype=torch.int64), boxes=relative)


def _plain(name: str) -> str:
    """A file name without folders and ending: images of two folders stay apart."""
    return name.rpartition(".")[0].replace("/", "_") or name.replace("/", "_")
