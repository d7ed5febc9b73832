"""The demo replaces what a demo wrote, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.demo.folder import MARK, claim_prefix, claimed_folder
from sparse_detr.errors import OutputExistsError
from sparse_detr.storage.location import locate


def test_the_folder_of_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    with claimed_folder(tmp_path / "demo") as folder:
        (folder / "store").mkdir()
        (folder / "store" / "old").write_text("old")
        (folder / "report.html").write_text("old")
    with claimed_folder(tmp_path / "demo") as folder:
        assert [child.name for child in folder.iterdir()] == [MARK]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(OutputExistsError, match="no demo wrote"), claimed_folder(tmp_path):
        pytest.fail("entered")
    assert [child.name for child in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputExistsError, match="no demo wrote"), claimed_folder(tmp_path / "thesis.tex"):
        pytest.fail("entered")


def test_what_a_link_in_the_folder_points_to_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("keep")
    with claimed_folder(tmp_path / "demo") as folder:
        (folder / "link").symlink_to(tmp_path / "elsewhere")
    with claimed_folder(tmp_path / "demo"):
        pass
    assert (tmp_path / "elsewhere" / "file").read_text() == "keep"


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        claimed_folder(tmp_path / "demo") as folder,
        pytest.raises(OutputExistsError, match="another demo is writing"),
        claimed_folder(folder),
    ):
        pytest.fail("entered")


def test_the_prefix_in_a_store_is_replaced_or_refused(tmp_path: Path) -> None:
    ours = locate(tmp_path / "ours")
    claim_prefix(ours)
    ours.child("old").write_bytes(b"old")
    claim_prefix(ours)
    assert ours.list() == [MARK]
    theirs = locate(tmp_path / "theirs")
    theirs.child("photo.jpg").write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="no demo wrote"):
        claim_prefix(theirs)
    assert theirs.list() == ["photo.jpg"]
