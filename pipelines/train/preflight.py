"""What a run finds before its first step: boxes that its data loses, and where its weights come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.cli.console import listing
from pipelines.recipes.config import RunConfig
from pipelines.tracking.tracker import Tracker
from pipelines.train.engine.batches import LOCATIONS, read_annotations, require_locations
from pipelines.train.engine.initial_weights import StartReport
from sparse_detr.data.coco import verify_images
from sparse_detr.errors import require
from sparse_detr.records import Classes
from sparse_detr.storage.download import check_address
from sparse_detr.storage.location import check_access, locate


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """For the terminal, and for the MLflow run."""

    data: CheckedData
    """What there is to train on."""
    weights: StartReport | None = None
    """None where a run goes on from its checkpoint, and for a sweep, whose trials start each in their own way."""

    def describe(self) -> str:
        """Some lines: images, the first boxes that were left out, starting weights."""
        lines = [f"{self.data.train_images} training images, {self.data.val_images} validation images"]
        if self.data.dropped:
            lines.append(listing("Boxes left out", self.data.dropped))
        if self.weights is not None:
            lines.append(f"Starting weights: {self.weights.describe()}")
        return "\n".join(lines)

    def record(self, tracker: Tracker) -> None:
        """Write the count and the whole list of the boxes, and the starting weights."""
        tracker.metrics({"dropped_boxes": float(len(self.data.dropped))}, 0)
        if self.data.dropped:
            tracker.text("\n".join(self.data.dropped), "dropped_boxes.txt")
        if self.weights is not None:
            self.weights.record(tracker)


OnStart = Callable[[RunStart], None]
"""Called once, before the workers start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedData:
    """What `check_data` found."""

    classes: Classes
    train_images: int
    """Training images that will be used."""
    val_images: int
    """Validation images."""
    dropped: tuple[str, ...] = ()
    """Bad boxes of these images: each with its file and the reason why it was left out."""


def check_data(config: RunConfig) -> CheckedData:
    """Read the annotations and look for every image, before any worker starts.

    A store that refuses or says nothing is an error within 15 seconds.

    Raises:
        ConfigError, AnnotationError, StorageError: what is wrong with them.
    """
    data, training = config.data, config.training
    require_locations(data)
    for uri in (*(getattr(data, name) for name in LOCATIONS), training.init_model):
        if uri is not None:
            check_access(locate(uri))
    if training.init_backbone is not None:
        check_address(training.init_backbone)
    train, val = read_annotations(data)
    verify_images(train, data.train_images)
    verify_images(val, data.val_images)
    require(
        len(train.images) >= training.global_batch,
        f"training.global_batch: {training.global_batch} is more than the {len(train.images)} training "
        "images; give at most that",
    )
    return CheckedData(
        classes=train.classes,
        train_images=len(train.images),
        val_images=len(val.images),
        dropped=tuple(f"{index.source}: {box}" for index in (train, val) for box in index.dropped),
    )
