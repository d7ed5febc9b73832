"""Sparse DETR (ICLR 2022): an end-to-end detector that updates only the tokens its decoder looks at."""

from sparse_detr.model.config import BackboneConfig, ModelConfig
from sparse_detr.model.sparse_detr import SparseDetr
from sparse_detr.records import Classes, Detections, ImageBatch, Output, Targets

__all__ = ["BackboneConfig", "Classes", "Detections", "ImageBatch", "ModelConfig", "Output", "SparseDetr", "Targets"]
