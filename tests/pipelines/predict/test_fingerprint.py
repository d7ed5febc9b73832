from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.predict.fingerprint import Fingerprint, model_sha256
from pipelines.predict.output import begin, claim_output, write_json
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, OutputExistsError
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
        {"version": 2},
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


def test_claim_writes_the_settings(tmp_path: Path) -> None:
    begin(claim_output(locate(tmp_path / "out"), BASE, "refuse"), BASE, {"images": "s3://b/i"})
    content = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert content["fingerprint"] == BASE.digest
    assert content["settings"]["keep_ratio"] == 0.1
    assert content["images"] == "s3://b/i"


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("other", [BASE, replace(BASE, keep_ratio=0.5)])
def test_claimed_folder_is_refused_and_names_both(tmp_path: Path, other: Fingerprint, finished: bool) -> None:
    output = locate(tmp_path)
    begin(claim_output(output, BASE, "refuse"), BASE, {})
    if finished:
        write_json(output.child("_SUCCESS.json"), {})
    with pytest.raises(OutputExistsError, match=BASE.digest) as caught:
        claim_output(output, other, "refuse")
    assert other.digest in str(caught.value)
    assert ("unfinished" in str(caught.value)) is not finished


def test_detections_without_a_record_are_refused(tmp_path: Path) -> None:
    (tmp_path / "detections").mkdir()
    (tmp_path / "detections" / "part-0.parquet").write_bytes(b"x")
    with pytest.raises(OutputExistsError, match="unknown"):
        claim_output(locate(tmp_path), BASE, "refuse")


def test_overwrite_deletes_our_files_and_no_others(tmp_path: Path) -> None:
    output = locate(tmp_path)
    begin(claim_output(output, BASE, "refuse"), BASE, {})
    for name in ("_SUCCESS.json", "coco_results.json", "thesis.tex", "detections/part-0.parquet"):
        output.child(name).write_bytes(b"x")
    newer = replace(BASE, keep_ratio=0.5)
    before = output.list(recursive=True)
    claim = claim_output(output, newer, "overwrite")
    assert output.list(recursive=True) == before, "the claim alone deletes nothing"
    begin(claim, newer, {})
    assert output.list(recursive=True) == ["_run.json", "thesis.tex"]
    assert json.loads((tmp_path / "_run.json").read_text())["fingerprint"] == newer.digest
