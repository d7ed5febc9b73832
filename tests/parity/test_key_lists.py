"""All six configurations whose keys are listed: every key is mapped, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from sparse_detr import ModelConfig, SparseDetr
from sparse_detr.errors import CheckpointError
from sparse_detr.weights.authors.convert import ConversionReport, convert_original, to_original
from sparse_detr.weights.authors.names import canonical, original_name

BUILT: dict[str, dict[str, Any]] = {
    "r50_deformable_plain": {"query_source": "learned", "box_refinement": False, "shared_heads": True},
    "r50_deformable_two_stage": {"query_content": "proposal", "proposal_score": "class_agnostic"},
    "r50_efficient": {},
    "r50_sparse_rho0.1": {"keep_ratio": 0.1, "encoder_auxiliary_loss": True},
    "r50_sparse_rho0.3": {"keep_ratio": 0.3, "encoder_auxiliary_loss": True},
    "swint_sparse_rho0.1": {"keep_ratio": 0.1, "encoder_auxiliary_loss": True},
}
"""Fields that differ from the efficient, dense model of the issue's table."""


class Converted(NamedTuple):
    """One configuration."""

    name: str
    recording: Any
    model: SparseDetr
    report: ConversionReport


@pytest.fixture(scope="module", params=BUILT)
def converted(request: pytest.FixtureRequest, recording: Callable[[str], Any]) -> Converted:
    found = recording(request.param)
    return Converted(
        request.param, found, *convert_original(SparseDetr, found.state, BUILT[request.param].get("keep_ratio"))
    )


def test_configuration(converted: Converted) -> None:
    config = converted.model.config
    dense = {"keep_ratio": 1.0, "encoder_auxiliary_loss": False, "scoring_mean": "all"}
    assert config == ModelConfig(backbone=config.backbone, **(dense | BUILT[converted.name]))
    assert config.backbone.name == ("swin_tiny" if "swint" in converted.name else "resnet50")


def test_every_key_is_mapped(converted: Converted) -> None:
    keys, report = converted.recording.keys, converted.report
    assert set(report.mapped) == set(keys["keys"]) - set(keys["aliases"])
    assert set(report.mapped.values()) == set(converted.model.state_dict())
    assert report.aliases == keys["aliases"]
    assert report.ignored == ()


def test_trained_and_frozen_parameters(converted: Converted) -> None:
    config = converted.model.config
    ours = {original_name(name, config): p.requires_grad for name, p in converted.model.named_parameters()}
    recorded = converted.recording.keys["parameters_named_once"]
    assert ours == {canonical(name, config): trained for name, trained in recorded.items()}


def test_back_to_the_same_keys_and_tensors(converted: Converted) -> None:
    back, keys = to_original(converted.model), converted.recording.keys
    assert {key: list(tensor.shape) for key, tensor in back.items()} == keys["keys"]
    assert {key: str(tensor.dtype) for key, tensor in back.items() if tensor.dtype != torch.float32} == keys[
        "dtypes_not_f32"
    ]
    for key, tensor in converted.recording.state.items():
        assert torch.equal(back[key], tensor), key
    for alias, key in keys["aliases"].items():
        assert back[alias].data_ptr() == back[key].data_ptr()


def test_window_offsets_of_swin_are_checked(recording: Callable[[str], Any]) -> None:
    found = recording("swint_sparse_rho0.1")
    key = "backbone.0.body.layers.2.blocks.3.attn.relative_position_index"
    place = torch.stack(torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")).flatten(1)
    row, column = (place[:, :, None] - place[:, None, :]) + 6
    index = row * 13 + column
    assert torch.equal(to_original(SparseDetr.from_original(found.state | {key: index}, 0.1))[key], index)
    with pytest.raises(CheckpointError, match=rf"{key}: differs"):
        SparseDetr.from_original(found.state | {key: index.flip(0)}, 0.1)
