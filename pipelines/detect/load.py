"""Loads the model of a detection and checks it against the options."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.detect.config import DetectionConfig
from pipelines.detect.predictor import Predictor
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.retry import START_PATIENCE, patiently
from sparse_detr.weights.model_folder import describe_model


def describe_checked(config: DetectionConfig, keep_ratios: Sequence[float | None]) -> SparseDetr:
    """The model without its numbers, checked against the options as far as that goes; workers do the rest.

    Raises:
        CheckpointError: the folder holds no model.
        StorageError: it cannot be reached.
        ConfigError: the model cannot run at this keep ratio or size.
    """
    location = config.model_location()
    check_access(location)
    model: SparseDetr = patiently(describe_model, location.uri, SparseDetr, seconds=START_PATIENCE)
    _require_names(model, location.uri)
    for ratio in keep_ratios:
        model.config.checked_keep_ratio(ratio)
    config.image_size(model.image_size)
    return model


def load_checked(config: DetectionConfig, keep_ratios: Sequence[float | None]) -> SparseDetr:
    """Load the model here and run it once at each ratio, so that what cannot work is said before workers start.

    Raises:
        CheckpointError: the folder holds no model, or a damaged one.
        StorageError: it cannot be reached.
        ConfigError: the model cannot run at this keep ratio or size.
    """
    location = config.model_location()
    check_access(location)
    model = patiently(SparseDetr.from_pretrained, location.uri, seconds=START_PATIENCE)
    _require_names(model, location.uri)
    for ratio in keep_ratios:
        model.config.checked_keep_ratio(ratio)
    for ratio in keep_ratios:
        Predictor(model, config, keep_ratio=ratio).check()
    return model


def load_patiently(config: DetectionConfig) -> SparseDetr:
    """The model as a worker loads it: checked before, and waited for while its store, or MLflow, is away.

    Raises:
        CheckpointError: it is damaged, or no longer what it was.
        StoreUnavailableError: the store was away for longer than `store_patience`.
    """

    def loaded() -> SparseDetr:
        return SparseDetr.from_pretrained(config.model_location().uri)

    model: SparseDetr = patiently(loaded, seconds=config.store_patience)
    return model


def _require_names(model: SparseDetr, uri: str) -> None:
    if model.classes is not None and len(model.classes) != model.config.num_classes:
        raise ConfigError(
            f"model: {uri} gives {model.config.num_classes} scores a box but names {len(model.classes)} classes; "
            "correct config.json"
        )
