"""Sparse DETR (ICLR 2022): an end-to-end detector that updates only the tokens its decoder looks at."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_detr.detector import SparseDetr
    from sparse_detr.model.config import BackboneConfig, ModelConfig
    from sparse_detr.records import Classes, Detections, ImageBatch, Output, Targets

__all__ = ["BackboneConfig", "Classes", "Detections", "ImageBatch", "ModelConfig", "Output", "SparseDetr", "Targets"]

_MODULES = {"SparseDetr": "detector", "BackboneConfig": "model.config", "ModelConfig": "model.config"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for.

    The command line and the doctor read `sparse_detr.errors` and the like without the second that torch takes, and
    where torch or the op cannot be imported.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'records')}"), name)
