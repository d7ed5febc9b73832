from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.predict.fingerprint import Fingerprint, model_sha256
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError
from sparse_detr.storage.location import locate
from sparse_detr.weights.model_folder import save_model

BASE = Fingerprint(
    model_sha256="ab" * 32, keep_ratio=0.1, short_side=800, max_side=1333, score_threshold=0.3, max_detections=100
)


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "cd" * 32},
        {"keep_ratio": 0.2},
        {"short_side": 801},
        {"max_side": 1334},
        {"score_threshold": 0.31},
        {"max_detections": 99},
        {"tile": 1024},
        {"overlap": 0.1},
        {"precision": "bfloat16"},
        {"engine": "compiled"},
        {"version": 99},
    ],
)
def test_every_field_changes_the_digest(change: dict[str, object]) -> None:
    assert replace(BASE).digest == BASE.digest
    assert replace(BASE, **change).digest != BASE.digest  # type: ignore[arg-type]


def test_model_hash_depends_on_weights_and_configuration_alone(tmp_path: Path, model: SparseDetr) -> None:
    for name in ("one", "two"):
        save_model(tmp_path / name, model)
    (tmp_path / "two" / "training_state.pt").write_bytes(b"beside the model")
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters())[0] += 1
    save_model(tmp_path / "trained", other)
    other = copy.deepcopy(model)
    other.classes = None
    save_model(tmp_path / "nameless", other)
    one, two, trained, nameless = (
        model_sha256(locate(tmp_path / name)) for name in ("one", "two", "trained", "nameless")
    )
    assert one == two
    assert len({one, trained, nameless}) == 3


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config.json": 1, "model.safetensors": 2}'])
def test_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest"):
        model_sha256(locate(tmp_path))
