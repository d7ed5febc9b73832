"""From a configuration to a detector."""

from __future__ import annotations

from sparse_detr.model.config import ModelConfig
from sparse_detr.model.sparse_detr import SparseDetr


def build_model(config: ModelConfig) -> SparseDetr:
    """A detector with random weights. Seed torch before, for the same ones again."""
    return SparseDetr(config)
