"""Names that `import sparse_detr` offers, and modules that it does without."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import sparse_detr
from sparse_detr import ImageBatch, Output, SparseDetr

REQUIRED = inspect.Parameter.empty


def test_public_names() -> None:
    assert sparse_detr.__all__ == [
        "BackboneConfig",
        "Classes",
        "Detections",
        "ImageBatch",
        "ModelConfig",
        "Output",
        "SparseDetr",
        "Targets",
    ]
    assert all(hasattr(sparse_detr, name) for name in sparse_detr.__all__)


def test_signatures_that_users_build_on() -> None:
    assert _parameters(SparseDetr.from_original) == {"source": REQUIRED, "keep_ratio": None, "hints": None}
    assert _parameters(SparseDetr.from_pretrained) == {"path_or_uri": REQUIRED}
    assert _parameters(ImageBatch.from_list) == {"images": REQUIRED}
    assert _parameters(SparseDetr.forward) == {"self": REQUIRED, "batch": REQUIRED, "keep_ratio": None,
                                               "with_auxiliary": None}  # fmt: skip
    keyword = {name for name, p in inspect.signature(SparseDetr.forward).parameters.items() if p.kind == p.KEYWORD_ONLY}
    assert keyword == {"with_auxiliary"}
    assert _parameters(SparseDetr) == {"config": REQUIRED}
    assert [field.name for field in dataclasses.fields(Output)][:4] == [
        "logits",
        "boxes",
        "kept_tokens",
        "query_tokens",
    ]


def _parameters(function: Callable[..., Any]) -> dict[str, object]:
    """Names in order, with their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def test_every_module_imports_without_ray_and_mlflow() -> None:
    script = """
import importlib, pkgutil, sys
sys.modules["ray"] = sys.modules["mlflow"] = None
import sparse_detr
names = [module.name for module in pkgutil.walk_packages(sparse_detr.__path__, "sparse_detr.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
