"""The attention module against the recorded one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_detr.model.deformable_attention import DeformableAttention
from sparse_detr.records import FeaturePyramid

OURS = {"value_proj": "value", "output_proj": "output"}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Any:
    return shared / "golden"


@pytest.mark.parametrize("size", [2, 4])
def test_recorded_module(golden: Path, size: int) -> None:
    spec = importlib.util.spec_from_file_location("golden_rule", golden / "rule.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    core = {key: torch.from_numpy(array) for key, array in np.load(golden / "core.npz").items()}
    module = DeformableAttention(256, 8, 2, 4)
    theirs = {ours: name for name, ours in OURS.items()}
    for key, tensor in module.state_dict().items():
        owner, leaf = key.split(".")
        tensor.copy_(torch.from_numpy(rule.fill(f"module.{theirs.get(owner, owner)}.{leaf}", tuple(tensor.shape))))
    pyramid = FeaturePyramid(
        tokens=core["module_x"],
        position=core["module_x"],
        padding=core["module_mask"],
        valid_ratios=torch.ones(2, 2, 2),
        shapes=((6, 8), (3, 4)),
    )
    with torch.no_grad():
        found = module(core["module_q"], core[f"module_ref{size}"], core["module_x"], pyramid, with_samples=True)
    torch.testing.assert_close(found.output, core[f"module_out{size}"], atol=1e-5, rtol=1e-5)
    assert found.locations is not None
    assert found.weights is not None
    torch.testing.assert_close(found.locations, core[f"module_loc{size}"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.weights, core[f"module_attn{size}"], atol=1e-6, rtol=1e-6)


def test_initial_offsets(golden: Path) -> None:
    recorded = torch.from_numpy(np.load(golden / "core.npz")["module_init_offset_bias"])
    module = DeformableAttention(256, 8, 2, 4)
    torch.testing.assert_close(module.sampling_offsets.bias.detach(), recorded, atol=1e-6, rtol=0)
    assert not module.sampling_offsets.weight.any()
    assert not module.attention_weights.weight.any()
