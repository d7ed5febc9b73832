"""Images, predictor and fingerprint, as a run, a dry run, pictures and a dataset all take them."""

from __future__ import annotations

import numpy as np

from pipelines.detect.manifest import Manifest, build_manifest
from pipelines.detect.predictor import PredictorFactory
from pipelines.predict.config import InferenceConfig
from pipelines.predict.fingerprint import Fingerprint, model_sha256
from sparse_detr.detector import SparseDetr


def predictor_factory(config: InferenceConfig) -> PredictorFactory:
    """Makes the predictor that the config asks for."""
    return PredictorFactory(
        config=config, keep_ratio=config.keep_ratio, score_threshold=config.score_threshold, tiles=config.tiles()
    )


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
