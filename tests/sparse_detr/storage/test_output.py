"""The one claim of an output: what is refused, what is deleted and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_detr.errors import ConfigError, OutputExistsError, StorageError
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.output import (
    Existing,
    checked_file,
    checked_folder,
    claim_folder,
    require_apart,
    require_known,
    require_marked,
)

RESULTS = ("done.json", "run.json", "parts")


@pytest.fixture
def used(tmp_path: Path) -> Location:
    for name in ("done.json", "parts/0", "thesis.tex"):
        locate(tmp_path).child(name).write_bytes(b"x")
    return locate(tmp_path)


@pytest.mark.parametrize(
    ("uri", "parent"),
    [
        ("s3://bucket/a/b.json", "s3://bucket/a"),
        ("s3://bucket/b.json", "s3://bucket"),
        ("s3://bucket", "s3://bucket"),
        ("/a/b.json", "/a"),
        ("/b.json", "/"),
        ("/", "/"),
    ],
)
def test_the_folder_that_is_tried_is_in_the_same_store(uri: str, parent: str) -> None:
    found = locate(uri).parent()
    assert (found.uri, found.is_local) == (parent, parent.startswith("/"))
    assert locate(found.uri) == found


@pytest.mark.parametrize("existing", ["refuse", "overwrite", "resume"])
def test_a_free_folder_is_free_whatever_the_word(tmp_path: Path, existing: Existing) -> None:
    (tmp_path / "notes.txt").write_text("the user's own")
    for folder in (tmp_path, tmp_path / "absent"):
        claim = claim_folder(locate(folder), existing, RESULTS)
        assert (claim.found, claim.resumes) == ((), False)
        claim.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_refusal_names_field_finds_and_remedies(used: Location) -> None:
    with pytest.raises(
        OutputExistsError, match=r"^run\.output: .*a sweep \(done\.json, parts\).*run\.existing to over"
    ):
        claim_folder(used, "refuse", RESULTS, field="run.output", holds=lambda: "a sweep")
    with pytest.raises(OutputExistsError, match=r"set existing to overwrite or resume$"):
        claim_folder(used, "refuse", RESULTS, resumable=True)
    with pytest.raises(OutputExistsError, match="is a file; name a folder"):
        claim_folder(used.child("thesis.tex"), "overwrite", RESULTS)


def test_overwrite_deletes_when_told_and_only_results(used: Location) -> None:
    claim = claim_folder(used, "overwrite", RESULTS)
    assert used.list() == ["done.json", "parts", "thesis.tex"]
    claim.clear()
    assert used.list() == ["thesis.tex"]


def test_the_marker_goes_first(used: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_location: Location) -> None:
        raise StorageError("the store went away")

    monkeypatch.setattr(Location, "delete_dir", broken)
    with pytest.raises(StorageError):
        claim_folder(used, "overwrite", RESULTS).clear()
    assert used.list() == [".overwriting", "parts", "thesis.tex"]


@pytest.mark.parametrize("deleted", [1, 2])
def test_half_a_deletion_is_not_resumed_and_can_be_gone_through_with(
    used: Location, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    used.child("run.json").write_bytes(b"x")

    def broken(_location: Location) -> None:
        raise StorageError("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "delete_dir", broken)
        with pytest.raises(StorageError):
            claim_folder(used, "overwrite", RESULTS[-deleted:], marks=("run.json",)).clear()
    for word in ("refuse", "resume"):
        with pytest.raises(OutputExistsError, match="set existing to overwrite"):
            claim_folder(used, word, RESULTS, marks=("run.json",))
    claim_folder(used, "overwrite", RESULTS, marks=("run.json",)).clear()
    assert used.list() == ["thesis.tex"]


@pytest.mark.parametrize("existing", ["refuse", "overwrite", "resume"])
def test_files_without_the_mark_of_a_run_are_left_alone(used: Location, existing: Existing) -> None:
    with pytest.raises(OutputExistsError, match=r"holds done\.json, parts that no run of ours wrote; choose another"):
        claim_folder(used, existing, RESULTS, marks=("run.json", "parts/mark"))
    used.child("parts/mark").write_bytes(b"")
    claim = claim_folder(used, "overwrite", RESULTS, marks=("run.json", "parts/mark"))
    assert claim.found == ("done.json", "parts")


@pytest.mark.parametrize(
    ("path", "relation"),
    [
        ("run/parts", "is what output would replace"),
        ("run/parts/0/model", r"is in /.*/parts, which output would replace"),
        ("run", r"holds /.*/done\.json, which"),
        ("link/parts", "is what"),
        ("run/./other/../parts", "is what"),
        ("run/parts#sha256=0123456789", "is what"),
    ],
)
def test_an_input_among_the_results_is_refused(tmp_path: Path, path: str, relation: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    for folder in ("run", "link"):
        with pytest.raises(OutputExistsError, match=f"^model: /.* {relation}"):
            require_apart(locate(tmp_path / folder), RESULTS, {"images": None, "model": f"{tmp_path}/{path}"})


def test_inputs_beside_the_results_are_fine(tmp_path: Path) -> None:
    inputs = {
        "a": str(tmp_path / "run/part"),
        "b": str(tmp_path / "run/parts2/x"),
        "c": "s3://bucket" + str(tmp_path / "run/parts"),
        "d": "https://host/run/parts#sha256=0123456789",
        "e": "",
    }
    require_apart(locate(tmp_path / "run"), RESULTS, inputs)


def test_in_a_store_names_are_compared_whole(s3: object) -> None:
    output = locate("s3://bucket/a/run/")
    require_apart(output, RESULTS, {"model": "s3://bucket/a/run/parts-2", "images": "/bucket/a/run/parts"})
    for uri in ("s3://bucket/a/run/parts/", "s3://bucket/a", "s3://bucket//a/run/parts/0"):
        with pytest.raises(OutputExistsError, match="model: s3://bucket/a"):
            require_apart(output, RESULTS, {"model": uri})


def test_resume_keeps_everything(used: Location) -> None:
    claim = claim_folder(used, "resume", RESULTS, resumable=True)
    claim.clear()
    assert claim.resumes
    assert used.list() == ["done.json", "parts", "thesis.tex"]


def test_words() -> None:
    for word in ("refuse", "overwrite"):
        require_known(word)
    require_known("resume", resumable=True)
    with pytest.raises(ConfigError, match=r"'resume' continues a training .* choose refuse or overwrite"):
        require_known("resume")
    with pytest.raises(ConfigError, match="'append' is not known; choose refuse, overwrite or resume"):
        require_known("append", resumable=True)


def test_a_file(used: Location) -> None:
    uri = used.child("thesis.tex").uri
    with pytest.raises(OutputExistsError, match=r"plot: .*thesis\.tex exists; .*existing to overwrite"):
        checked_file(uri, "refuse", field="plot")
    assert checked_file(uri, "overwrite").read_bytes() == b"x"
    with pytest.raises(OutputExistsError, match="is a folder"):
        checked_file(used.uri, "overwrite")
    with pytest.raises(OutputExistsError, match=r"^notes: /.*thesis\.tex is what plot would replace; .* another plot$"):
        checked_file(uri, "overwrite", field="plot", inputs={"notes": uri})
    beside = used.child("new.json").uri
    assert checked_file(beside, "overwrite", inputs={"images": used.uri}).uri == beside


def test_a_model_folder(used: Location) -> None:
    with pytest.raises(OutputExistsError, match=r"not empty; .*existing to overwrite"):
        checked_folder(used.uri, "refuse", "done.json")
    assert checked_folder(used.uri, "overwrite", "done.json") == used
    with pytest.raises(OutputExistsError, match="is a file"):
        checked_folder(used.child("thesis.tex").uri, "overwrite", "done.json")
    for word in ("refuse", "overwrite"):
        with pytest.raises(OutputExistsError, match="holds something that no finished conversion wrote"):
            checked_folder(used.uri, word, "manifest.json")


def test_a_mark_opens_a_folder(used: Location, tmp_path: Path) -> None:
    require_marked(locate(tmp_path / "absent"), "mark", field="store", writer="demo")
    with pytest.raises(OutputExistsError, match=r"store: .* holds something that no demo wrote"):
        require_marked(used, "mark", field="store", writer="demo")
    used.child("mark").write_bytes(b"")
    require_marked(used, "mark", field="store", writer="demo")
