"""Images, predictor and fingerprint, as a run, a dry run, pictures and a dataset all take them."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from pipelines.detect.manifest import Manifest, build_manifest
from pipelines.detect.predictor import PredictorFactory
from pipelines.predict.config import InferenceConfig
from pipelines.predict.fingerprint import Fingerprint, model_sha256
from pipelines.tracking.model_uri import pinned
from sparse_detr.detector import SparseDetr
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import locate

Inference = TypeVar("Inference", bound=InferenceConfig)


def predictor_factory(config: InferenceConfig) -> PredictorFactory:
    """Makes the predictor that the config asks for."""
    return PredictorFactory(
        config=config, keep_ratio=config.keep_ratio, score_threshold=config.score_threshold, tiles=config.tiles()
    )


def reachable(config: Inference) -> Inference:
    """The same, with the version that the model's name means now, once what it reads is known to be within reach.

    Raises:
        CheckpointError, ConfigError, StorageError: what is not; within 15 seconds.
    """
    config = replace(config, model=pinned(config.model))
    annotations = [locate(config.annotations)] if config.annotations is not None else []
    for location in (locate(config.images), config.model_location(), *annotations):
        check_access(location)
    return config


def fingerprint_of(config: InferenceConfig, model: SparseDetr) -> Fingerprint:
    """Everything that decides the detections of a run with this model, whose numbers are not looked at."""
    size = config.image_size(model.image_size)
    return Fingerprint(
        model_sha256=model_sha256(config.model_location()),
        keep_ratio=model.config.keep_ratio if config.keep_ratio is None else config.keep_ratio,
        short_side=size.short_side,
        max_side=size.max_side,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
        tile=config.tile,
        overlap=None if config.tile is None else config.overlap,
    )


def chosen_images(config: InferenceConfig) -> Manifest:
    """The images that the config names, listed now."""
    manifest = build_manifest(config.images, config.annotations, uri_column=config.uri_column)
    if config.limit is not None:
        return manifest.only(np.arange(min(config.limit, len(manifest))))
    if config.sample is not None and config.sample < len(manifest):
        return manifest.only(np.random.default_rng(0).choice(len(manifest), config.sample, replace=False))
    return manifest
