"""Models with the recorded weights, and what the authors' code computed with them (golden/README.md)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparse_detr import ImageBatch, Targets


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Recording:
    """One recorded configuration of the authors' code."""

    rule: ModuleType
    state: dict[str, Tensor]
    """All keys, aliases too, as a real checkpoint holds them; without int64 buffers, which the rule does not fill."""
    keys: dict[str, Any]
    """The list of keys, shapes, aliases and parameters."""
    meta: dict[str, Any]
    """Losses and norms of gradients; empty where only the keys were recorded."""
    arrays: Any
    """The recorded tensors, likewise."""

    def array(self, case: str, key: str) -> Tensor:
        """The tensor recorded under `case`/`key`."""
        return torch.from_numpy(self.arrays[f"{case}/{key}"])

    def images(self, case: str) -> ImageBatch:
        """Image A, image B, or both."""
        from sparse_detr import ImageBatch

        return ImageBatch.from_list([torch.from_numpy(self.rule.image(name)) for name in case])

    def targets(self, case: str) -> list[Targets]:
        """The objects of the images."""
        from sparse_detr import Targets

        pairs = [self.rule.target(name) for name in case]
        return [Targets(labels=torch.from_numpy(labels), boxes=torch.from_numpy(boxes)) for labels, boxes in pairs]


@pytest.fixture(scope="session")
def recording(shared: Path) -> Callable[[str], Recording]:
    """A function from the name of a configuration to its recording."""
    folder = shared / "golden"
    spec = importlib.util.spec_from_file_location("golden_rule", folder / "rule.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)

    def read(name: str) -> Recording:
        meta = folder / f"{name}.meta.json"
        keys = json.loads((folder / f"{name}.keys.json").read_text())
        state: dict[str, Tensor] = {}
        for key in sorted(keys["keys"], key=lambda key: key in keys["aliases"]):
            if key in keys["dtypes_not_f32"]:
                continue
            first = keys["aliases"].get(key)
            filled = None if first else rule.fill(key, tuple(keys["keys"][key]), rule.SALT[name])
            state[key] = state[first] if first else torch.from_numpy(filled)
        return Recording(
            rule=rule,
            state=state,
            keys=keys,
            meta=json.loads(meta.read_text()) if meta.exists() else {},
            arrays=np.load(folder / f"{name}.npz") if meta.exists() else {},
        )

    return read
