"""Weights of a training before its first step: random, of a backbone, or of a model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipelines.recipes.config import RunConfig
from pipelines.tracking.model_uri import model_folder
from pipelines.train.engine.freeze import freeze
from pipelines.train.engine.seeding import seed_weights
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError
from sparse_detr.records import Classes
from sparse_detr.weights.backbones import load_backbone
from sparse_detr.weights.model_folder import describe_model
from sparse_detr.weights.state import LoadReport


def initial_model(config: RunConfig, classes: Classes) -> tuple[SparseDetr, LoadReport]:
    """The model before its first step: the same on every rank.

    Raises:
        CheckpointError: `init_model` or `init_backbone` cannot be read as what it claims to be.
        ConfigError: `init_model` has weights of other shapes, or other classes; `optimizer.freeze` names no part.
    """
    seed_weights(config.training.seed)
    model = SparseDetr(config.model)
    model.classes = classes
    model.image_size = config.data.image_size
    report = _start(model, config, classes, SparseDetr.from_pretrained)
    return model, report


def describe_initial_model(config: RunConfig, classes: Classes) -> LoadReport:
    """Report of `initial_model` in advance, by names and shapes: the model is on the meta device, without a number.

    Of a model folder it reads the header. A backbone's file is read whole, since a `.pth` has its names throughout and
    a checksum needs all bytes; from the web it is fetched once per machine, into the cache of downloads.

    Raises:
        CheckpointError, ConfigError: as `initial_model`, but for damage within the weights of `init_model`.
    """
    with torch.device("meta"):
        model = SparseDetr(config.model)
    return _start(model, config, classes, lambda uri: describe_model(uri, SparseDetr))


def _start(model: SparseDetr, config: RunConfig, classes: Classes, read: Callable[[str], SparseDetr]) -> LoadReport:
    training, report = config.training, LoadReport(source=None)
    if training.init_backbone is not None:
        report = load_backbone(model, training.init_backbone)
    if training.init_model is not None:
        report = _load_weights(
            model, read(model_folder(training.init_model, config.tracking_uri)), training.init_model, classes
        )
    freeze(model, config.optimizer.freeze)
    return report


def _load_weights(model: SparseDetr, source: SparseDetr, uri: str, classes: Classes) -> LoadReport:
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
    return LoadReport(
        source=uri,
        loaded=tuple(shared),
        fresh=tuple(name for name in wanted if name not in given),
        ignored=tuple(name for name in given if name not in wanted),
    )
