"""The parts of a training run, made from its config: starting weights, data, criterion, loop."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.recipes.config import RunConfig
from pipelines.tracking.tracker import Tracker
from pipelines.train.engine.loop import seed_everything
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError
from sparse_detr.records import Classes
from sparse_detr.weights.backbones import load_backbone


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


def initial_model(config: RunConfig, classes: Classes) -> tuple[SparseDetr, StartReport]:
    """The model before its first step: the same on every rank.

    Raises:
        CheckpointError: `init_model` or `init_backbone` cannot be read as what it claims to be.
        ConfigError: `init_model` has weights of other shapes, or other classes.
    """
    seed_everything(config.training.seed, 0, 0)
    model = SparseDetr(config.model)
    model.classes = classes
    model.image_size = config.data.image_size
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
    source = SparseDetr.from_pretrained(uri)
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
