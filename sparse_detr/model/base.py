"""A detector as its weights, its files and its cost see it: configuration, classes, image size."""

from __future__ import annotations

from torch import nn

from sparse_detr.model.backbone.base import Backbone
from sparse_detr.model.config import ModelConfig
from sparse_detr.records import Classes, ImageSize


class Detector(nn.Module):
    """Configuration, classes and image size of a model. `sparse_detr.detector.SparseDetr` is the one that computes.

    Readers of files are handed that class and build it, so that it can call them and they need not import it.
    """

    backbone: Backbone

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.classes: Classes | None = None
        """Names and category ids of the labels, once known; they travel with checkpoints."""
        self.image_size: ImageSize | None = None
        """The size that the model was evaluated at in training, once known; it travels with checkpoints."""
