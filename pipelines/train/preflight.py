"""Checks of a training or a sweep before its workers start, and what they found. They need no cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines.cli.console import listing
from pipelines.cluster.session import prepare_environment
from pipelines.recipes.config import RunConfig
from pipelines.recipes.paths import absolute
from pipelines.tracking.mlflow_store import resolved_uri
from pipelines.tracking.model_uri import model_folder, pinned
from pipelines.tracking.provenance import DataUse
from pipelines.tracking.tracker import Tracker
from pipelines.train.engine.batches import LOCATIONS, read_annotations, require_locations
from pipelines.train.engine.build import with_classes
from pipelines.train.engine.initial_weights import describe_initial_model
from pipelines.train.output import CHECKPOINTS, RUN_FILE
from sparse_detr.data.coco import verify_images
from sparse_detr.data.coco_index import CocoIndex
from sparse_detr.errors import require
from sparse_detr.records import Classes
from sparse_detr.storage.access import check_access
from sparse_detr.storage.download import check_address
from sparse_detr.storage.location import Location, locate
from sparse_detr.weights.state import LoadReport


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """For the terminal, and for the MLflow run."""

    data: CheckedData
    """Images, classes, and boxes left out."""
    weights: LoadReport | None = None
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
        tracker.datasets(self.data.used)
        tracker.metrics({"dropped_boxes": float(len(self.data.dropped))}, 0)
        if self.data.dropped:
            tracker.text("\n".join(self.data.dropped), "dropped_boxes.txt")
        if self.weights is not None:
            record_weights(self.weights, tracker)


def record_weights(report: LoadReport, tracker: Tracker) -> None:
    """Write the line as a tag of the run, and every name that starts fresh or is ignored as a text."""
    tracker.tags({"sparse_detr.starting_weights": report.describe()})
    names = [f"fresh: {name}" for name in report.fresh] + [f"ignored: {name}" for name in report.ignored]
    if names:
        tracker.text("\n".join([report.describe(), *names]), "starting_weights.txt")


OnStart = Callable[[RunStart], None]
"""Called once, before the workers start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedData:
    """Findings of `check_data`."""

    classes: Classes
    train_images: int
    """Training images that will be used."""
    val_images: int
    """Validation images."""
    used: tuple[DataUse, ...] = ()
    """Training and validation data, for MLflow."""
    dropped: tuple[str, ...] = ()
    """Bad boxes of these images: each with its file and the reason why it was left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """A run that may start."""

    config: RunConfig
    """With absolute paths, and the number of classes of its data."""
    output: Location
    """Its folder, which can be written to."""
    start: RunStart
    """For the terminal and MLflow."""


def preflight(config: RunConfig) -> Preflight:
    """All checks that need no cluster: the settings first, then output, data, starting weights.

    Raises:
        SparseDetrError: what the user can fix, with field and remedy.
    """
    prepare_environment()
    require_locations(config.data)
    config = absolute(config)
    output = locate(config.output)
    check_access(output, writable=True)
    require(
        config.registered_model is None or resolved_uri(config.tracking_uri) != "none",
        f"registered_model: {config.registered_model!r} without MLflow; give tracking_uri, or set MLFLOW_TRACKING_URI",
    )
    goes_on = config.existing == "resume" and output.child(RUN_FILE).exists()
    # A run that goes on keeps the version that it began with: see `continued_run`.
    config = config if goes_on else _pinned(config)
    data = check_data(config, starts=not goes_on)
    config = with_classes(config, data.classes)
    resumed = config.existing == "resume" and output.child(CHECKPOINTS).exists()
    weights = None if resumed else describe_initial_model(config, data.classes)
    return Preflight(config=config, output=output, start=RunStart(data=data, weights=weights))


def check_data(config: RunConfig, *, starts: bool = True) -> CheckedData:
    """Read the annotations and look for every image, before any worker starts.

    A store that refuses or says nothing is an error within 15 seconds.

    Args:
        config: the run.
        starts: whether it needs its starting weights.

    Raises:
        ConfigError, AnnotationError, StorageError: what is wrong with them.
    """
    data, training = config.data, config.training
    require_locations(data)
    wanted = training.init_model if starts else None
    folder = None if wanted is None else model_folder(wanted, config.tracking_uri)
    for uri in (*(getattr(data, name) for name in LOCATIONS), folder):
        if uri is not None:
            check_access(locate(uri))
    if training.init_backbone is not None:
        check_address(training.init_backbone)
    train, val = read_annotations(data)
    require(len(val.images) > 0, f"data.val_annotations: {val.source} has no images; give at least one")
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
        used=(_use("train", train), _use("val", val)),
        dropped=tuple(f"{index.source}: {box}" for index in (train, val) for box in index.dropped),
    )


def _pinned(config: RunConfig) -> RunConfig:
    """The same run with the version of `init_model` that an alias names now."""
    model = config.training.init_model
    if model is None:
        return config
    return replace(config, training=replace(config.training, init_model=pinned(model, config.tracking_uri)))


def _use(name: str, index: CocoIndex) -> DataUse:
    boxes = sum(len(image.boxes) for image in index.images)
    return DataUse(name=name, source=index.source, digest=index.digest(), images=len(index), boxes=boxes)
