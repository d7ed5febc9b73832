"""What `import sparse_detr` offers, and what it does without."""

from __future__ import annotations

import subprocess
import sys

import sparse_detr


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
