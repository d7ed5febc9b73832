"""Fingerprint of a run: everything that decides a detection, as one short hash.

An output folder holds the results of one fingerprint, never a mix of two models or settings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

from sparse_detr.errors import CheckpointError
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import START_PATIENCE, patiently
from sparse_detr.weights.model_folder import CONFIG, MANIFEST, WEIGHTS

VERSION = 3
"""Raised when a change of the code changes detections for the same model and settings."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that decides which boxes an image gets."""

    model_sha256: str
    """Of the model folder's weights and configuration."""
    keep_ratio: float
    short_side: int
    max_side: int
    score_threshold: float
    max_detections: int
    tile: int | None = None
    """Side of a tile, pixels; None for whole images alone."""
    overlap: float | None = None
    """Share that neighbouring tiles have in common; None without tiles."""
    precision: str = "float32"
    engine: str = "eager"
    version: int = VERSION

    @cached_property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def model_sha256(model: Location) -> str:
    """Hash of a model's weights and configuration, in whatever store they are and whenever they were written.

    Taken from the model folder's manifest, which `load_model` compares with the files themselves.

    Raises:
        CheckpointError: the manifest is not what `save_model` writes.
        StorageError: it cannot be read.
    """
    try:
        files = json.loads(patiently(model.child(MANIFEST).read_bytes, seconds=START_PATIENCE))
        content = {name: files[name]["sha256"] for name in (CONFIG, WEIGHTS)}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{model.child(MANIFEST).uri}: not a model's manifest ({error}); fetch it again"
        ) from None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
