"""The parts of a training run, made from its config: starting weights, data, criterion, loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pipelines.config import RunConfig
from pipelines.run_data import load_data
from pipelines.tracking import Tracker
from pipelines.train_loop import TrainHooks, TrainLoop, seed_everything
from sparse_detr.download import absolute_address
from sparse_detr.errors import ConfigError
from sparse_detr.losses.criterion import Criterion
from sparse_detr.model.backbone_weights import load_backbone
from sparse_detr.model.checkpoint import load_model
from sparse_detr.model.sparse_detr import SparseDetr
from sparse_detr.records import Classes, ImageSize
from sparse_detr.storage import locate


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """Where the weights at the start come from."""

    source: str | None
    """Path or URI; None where all weights are random."""
    loaded: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    """Parameters that the source lacks: they start random."""
    ignored: tuple[str, ...] = ()
    """What the source has and the model lacks."""
    prefix: str = ""
    """What stood before every name in the source and was taken off."""

    def describe(self) -> str:
        """One line, with the names of what starts fresh shortened to their stems."""
        if self.source is None:
            return "all weights start fresh"
        stems = sorted({".".join(name.split(".")[:2]) for name in self.fresh})
        fresh = f"; fresh: {len(self.fresh)} ({', '.join(stems)})" if self.fresh else ""
        ignored = f"; ignored: {len(self.ignored)}" if self.ignored else ""
        prefix = f" from under {self.prefix}" if self.prefix else ""
        return f"{self.source}: {len(self.loaded)} tensors loaded{prefix}{fresh}{ignored}"

    def record(self, tracker: Tracker) -> None:
        """Write the line as a tag of the run, and every name that starts fresh or is ignored as a text."""
        tracker.tags({"sparse_detr.starting_weights": self.describe()})
        names = [f"fresh: {name}" for name in self.fresh] + [f"ignored: {name}" for name in self.ignored]
        if names:
            tracker.text("\n".join([self.describe(), *names]), "starting_weights.txt")


def absolute(config: RunConfig) -> RunConfig:
    """The same run with every relative path made absolute, so that it means the same in every process."""

    def full(uri: str) -> str:
        return locate(uri).uri if uri else uri

    data, training = config.data, config.training
    tracking = config.tracking_uri
    if tracking is not None and tracking.startswith("sqlite:///") and not tracking.startswith("sqlite:////"):
        tracking = "sqlite:///" + full(tracking.removeprefix("sqlite:///"))
    return replace(
        config,
        output=full(config.output),
        tracking_uri=tracking,
        data=replace(
            data,
            train_annotations=full(data.train_annotations),
            train_images=full(data.train_images),
            val_annotations=full(data.val_annotations),
            val_images=full(data.val_images),
        ),
        training=replace(
            training,
            init_backbone=absolute_address(training.init_backbone) if training.init_backbone else None,
            init_model=full(training.init_model) if training.init_model else None,
        ),
    )


def with_classes(config: RunConfig, classes: Classes) -> RunConfig:
    """The same run with `model.num_classes` taken from the data."""
    return replace(config, model=replace(config.model, num_classes=len(classes)))


def initial_model(config: RunConfig, classes: Classes) -> tuple[SparseDetr, StartReport]:
    """The model before its first step: the same on every rank.

    Raises:
        CheckpointError: `init_model` or `init_backbone` cannot be read as what it claims to be.
        ConfigError: `init_model` has weights of other shapes, or other classes.
    """
    seed_everything(config.training.seed, 0, 0)
    model = SparseDetr(config.model)
    model.classes = classes
    model.image_size = ImageSize(short_side=config.data.short_side, max_side=config.data.max_side)
    report = StartReport(source=None)
    if config.training.init_backbone is not None:
        found = load_backbone(model, config.training.init_backbone)
        report = StartReport(
            source=config.training.init_backbone,
            loaded=found.loaded,
            fresh=found.fresh,
            ignored=found.ignored,
            prefix=found.prefix,
        )
    if config.training.init_model is not None:
        report = _load_weights(model, config.training.init_model, classes)
    return model, report


def _load_weights(model: SparseDetr, uri: str, classes: Classes) -> StartReport:
    source = load_model(uri)
    if source.classes is not None and source.classes.names != classes.names:
        raise ConfigError(
            f"training.init_model: {uri} knows the classes {source.classes.names}, the data has {classes.names}; "
            "start from a model of the same classes, or from a backbone with training.init_backbone"
        )
    wanted, given = model.state_dict(), source.state_dict()
    for name in wanted.keys() & given.keys():
        if wanted[name].shape != given[name].shape:
            raise ConfigError(
                f"training.init_model: {uri} has {name} of shape {tuple(given[name].shape)}, the run's model "
                f"{tuple(wanted[name].shape)}; give the run the model config of that folder"
            )
    shared = {name: value for name, value in given.items() if name in wanted}
    model.load_state_dict(shared, strict=False)
    return StartReport(
        source=uri,
        loaded=tuple(shared),
        fresh=tuple(name for name in wanted if name not in given),
        ignored=tuple(name for name in given if name not in wanted),
    )


def build_loop(
    config: RunConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    hooks: TrainHooks | None = None,
    on_weights: Callable[[StartReport], None] | None = None,
) -> TrainLoop:
    """Read the data and put the loop of one rank together; `on_weights` is told where its weights come from."""
    data = load_data(config, rank=rank, world_size=world_size)
    config = with_classes(config, data.classes)
    model, weights = initial_model(config, data.classes)
    if on_weights is not None:
        on_weights(weights)
    criterion = Criterion(config.loss)
    return TrainLoop(config, model, criterion, data, rank=rank, world_size=world_size, device=device, hooks=hooks)
