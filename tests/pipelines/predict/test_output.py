"""The record of a run in its folder: who may go on, who is refused and why, and what overwrite deletes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.predict.fingerprint import Fingerprint
from pipelines.predict.output import begin, claim_output, write_json
from sparse_detr.errors import CheckpointError, OutputExistsError
from sparse_detr.storage.location import locate
from sparse_detr.storage.output import Existing

BASE = Fingerprint(
    model_sha256="ab" * 32, keep_ratio=0.1, short_side=800, max_side=1333, score_threshold=0.3, max_detections=100
)
IMAGES: dict[str, Any] = {"images": "s3://b/i", "annotations": None, "limit": None}
FACTS = {"manifest": "0123", "total": 7}


@pytest.mark.parametrize("existing", ["refuse", "resume", "overwrite"])
def test_a_free_folder_is_free_and_the_record_says_everything(tmp_path: Path, existing: Existing) -> None:
    output = locate(tmp_path / "out")
    assert claim_output(output, BASE, IMAGES, existing) is None
    begin(output, BASE, IMAGES, FACTS)
    content = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert content["fingerprint"] == BASE.digest
    assert content["settings"]["keep_ratio"] == 0.1
    assert content["collection"] == IMAGES
    assert (content["total"], content["manifest"]) == (7, "0123")


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    output = locate(tmp_path)
    record = begin(output, BASE, IMAGES, FACTS)
    assert claim_output(output, replace(BASE), dict(IMAGES), "resume") == record


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("settings", "images", "words"),
    [
        ({"keep_ratio": 0.5}, {}, r"keep_ratio: 0\.1, now 0\.5"),
        ({"model_sha256": "cd" * 32}, {}, "model_sha256: 'abab"),
        ({"tile": 512, "overlap": 0.2}, {}, r"tile: None, now 512; overlap: None, now 0\.2"),
        ({"version": 99}, {}, "version: .*, now 99"),
        ({}, {"images": "s3://b/other"}, "images: 's3://b/i', now 's3://b/other'"),
        ({}, {"limit": 5}, "limit: None, now 5"),
    ],
)
def test_another_run_is_refused_by_name_of_every_difference(
    tmp_path: Path, settings: dict[str, Any], images: dict[str, Any], words: str, finished: bool
) -> None:
    output = locate(tmp_path)
    begin(output, BASE, IMAGES, FACTS)
    if finished:
        write_json(output.child("_SUCCESS.json"), {})
    before = output.list(recursive=True)
    with pytest.raises(OutputExistsError, match=words) as caught:
        claim_output(output, replace(BASE, **settings), {**IMAGES, **images}, "resume")
    assert ("unfinished" in str(caught.value)) is not finished
    assert output.list(recursive=True) == before


def test_refuse_names_the_fingerprint_that_is_there(tmp_path: Path) -> None:
    begin(locate(tmp_path), BASE, IMAGES, FACTS)
    with pytest.raises(OutputExistsError, match=BASE.digest):
        claim_output(locate(tmp_path), BASE, IMAGES, "refuse")


@pytest.mark.parametrize("existing", ["refuse", "resume", "overwrite"])
def test_detections_that_no_run_wrote_are_left_alone(tmp_path: Path, existing: Existing) -> None:
    (tmp_path / "detections").mkdir()
    (tmp_path / "detections" / "part-0.parquet").write_bytes(b"x")
    with pytest.raises(OutputExistsError, match="detections that no run of ours wrote"):
        claim_output(locate(tmp_path), BASE, IMAGES, existing)
    assert (tmp_path / "detections" / "part-0.parquet").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": {}, "collection": 1}'])
def test_a_damaged_record_is_not_gone_on_with(tmp_path: Path, text: str) -> None:
    (tmp_path / "detections").mkdir()
    (tmp_path / "_run.json").write_text(text)
    with pytest.raises(OutputExistsError, match="unknown"):
        claim_output(locate(tmp_path), BASE, IMAGES, "refuse")
    with pytest.raises(CheckpointError, match=r"_run\.json"):
        claim_output(locate(tmp_path), BASE, IMAGES, "resume")
    assert claim_output(locate(tmp_path), BASE, IMAGES, "overwrite") is None


def test_overwrite_spares_what_the_run_reads(tmp_path: Path) -> None:
    output = locate(tmp_path)
    begin(output, BASE, IMAGES, FACTS)
    output.child("detections/a.jpg").write_bytes(b"x")
    with pytest.raises(OutputExistsError, match="images"):
        claim_output(output, BASE, IMAGES, "overwrite", {"images": f"{tmp_path}/detections", "annotations": None})
    assert (tmp_path / "detections" / "a.jpg").exists()


def test_a_listing_that_was_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "_manifest.parquet").write_bytes(b"half")
    assert claim_output(locate(tmp_path), BASE, IMAGES, "resume") is None


def test_overwrite_deletes_our_files_and_no_others(tmp_path: Path) -> None:
    output = locate(tmp_path)
    begin(output, BASE, IMAGES, FACTS)
    ours = ("_SUCCESS.json", "coco_results.json", "detections.csv", "errors.parquet", "_manifest.parquet",
            "_parts/a.json", "detections/part-0.parquet")  # fmt: skip
    for name in (*ours, "thesis.tex", "_lease/00000001.json"):
        output.child(name).write_bytes(b"x")
    assert claim_output(output, replace(BASE, keep_ratio=0.5), IMAGES, "overwrite") is None
    assert output.list(recursive=True) == ["_lease/00000001.json", "thesis.tex"]
