"""Paths and URIs in a run's config: made absolute, and those that the run reads."""

from __future__ import annotations

from dataclasses import replace

from pipelines.recipes.config import RunConfig
from sparse_detr.storage.download import absolute_address
from sparse_detr.storage.location import locate


def absolute(config: RunConfig) -> RunConfig:
    """The same run with every relative path made absolute, so that it means the same in every process."""

    def full(uri: str) -> str:
        return locate(uri).uri if uri else uri

    data, training, init_model = config.data, config.training, config.training.init_model
    tracking = None if config.tracking_uri is None else absolute_tracking_uri(config.tracking_uri)
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
            init_model=init_model if init_model is None or is_model_uri(init_model) else full(init_model),
        ),
    )


def absolute_tracking_uri(uri: str) -> str:
    """MLflow's tracking URI, that of a sqlite file with its whole path."""
    file = uri.removeprefix("sqlite:///")
    return uri if file == uri or file.startswith("/") or not file else f"sqlite:///{locate(file).uri}"


def is_model_uri(uri: str) -> bool:
    """Whether this is a name of MLflow's for a model, such as `models:/name@alias` or `runs:/run id/model`."""
    return uri.startswith(("models:/", "runs:/"))


def inputs(config: RunConfig) -> dict[str, str | None]:
    """Everything that the run reads, by the name of its field; None where it is not set."""
    data, training = config.data, config.training
    return {
        "data.train_annotations": data.train_annotations,
        "data.train_images": data.train_images,
        "data.val_annotations": data.val_annotations,
        "data.val_images": data.val_images,
        "training.init_backbone": training.init_backbone,
        "training.init_model": training.init_model,
    }
