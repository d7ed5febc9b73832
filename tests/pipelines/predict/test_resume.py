"""Which rows are done, by listing and journal, and the tasks for the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.detect.images import ImageFailure, ImageResult
from pipelines.detect.rows import results_table
from pipelines.predict import resume
from pipelines.predict.parts import Part, Stamp, inspect_part, write_part
from pipelines.predict.resume import Journal, done_parts, gaps, plan_tasks
from sparse_detr.storage.location import Location, locate

STAMP = Stamp(fingerprint="f00d", manifest="beef")


def _part(first: int, last: int, errors: int = 0) -> Part:
    return Part(first=first, last=last, size=1, sha256="", detections=0, errors=errors)


def _write(output: Location, first: int, last: int, stamp: Stamp = STAMP) -> Part:
    gone = ImageFailure(stage="fetch", type="StorageError", message="gone")
    results = [ImageResult(index=i, key=f"{i}", failure=gone) for i in range(first, last + 1)]
    table = results_table(results, [None] * len(results), root="/r", classes=None, fingerprint="f00d")
    return write_part(output, first, table, stamp)


@given(
    total=st.integers(1, 300),
    cuts=st.lists(st.tuples(st.integers(0, 299), st.integers(1, 40)), max_size=12),
    block=st.integers(1, 70),
    retry=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_done_parts_and_tasks_cover_every_row_once(
    total: int, cuts: list[tuple[int, int]], block: int, retry: bool
) -> None:
    parts: list[Part] = []
    for start, length in sorted(cuts):
        first = max(start, parts[-1].last + 1 if parts else 0)
        last = min(first + length - 1, total - 1)
        if first <= last:
            parts.append(_part(first, last, errors=length % 2))
    rows = [row for task in plan_tasks(parts, total, block, retry_errors=retry) for row in task.to_pylist()]
    todo = [i for row in rows if not row["redo"] for i in range(row["first"], row["first"] + row["rows"])]
    done = [i for part in parts for i in range(part.first, part.last + 1)]
    assert sorted(todo + done) == list(range(total))
    assert all(row["rows"] <= block for row in rows if not row["redo"])
    redone = sorted((row["first"], row["rows"]) for row in rows if row["redo"])
    assert redone == ([(part.first, part.rows) for part in parts if part.errors] if retry else [])


def test_a_large_run_has_few_tasks_in_the_same_random_order() -> None:
    tasks = plan_tasks([], 10_000_000, 64)
    assert 1000 < len(tasks) <= resume.TASKS
    firsts = [task.column("first")[0].as_py() for task in tasks]
    assert firsts != sorted(firsts)
    assert firsts == [task.column("first")[0].as_py() for task in plan_tasks([], 10_000_000, 64)]
    # The first tenth of the work is a sample of all of it.
    assert sum(first > 5_000_000 for first in firsts[:200]) == pytest.approx(100, abs=30)


def test_gaps_of_nothing_and_of_all() -> None:
    assert list(gaps([], 5)) == [(0, 4)]
    assert list(gaps([_part(0, 4)], 5)) == []


def test_parts_are_found_with_and_without_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = locate(tmp_path)
    parts = [_write(output, start, start + 3) for start in (8, 0, 4)]
    journal = Journal(output, STAMP)
    for part in parts[:2]:
        journal.add(part)
    journal.flush()
    read: list[str] = []

    def inspected(output: Location, name: str, stamp: Stamp) -> Part | None:
        read.append(name)
        return inspect_part(output, name, stamp)

    monkeypatch.setattr(resume, "inspect_part", inspected)
    assert done_parts(output, STAMP) == sorted(parts, key=lambda part: part.first)
    assert read == [parts[2].name]


def test_what_the_journal_says_counts_only_where_the_part_is_there_and_of_its_size(tmp_path: Path) -> None:
    output = locate(tmp_path)
    kept, lost, changed = (_write(output, start, start + 3) for start in (0, 4, 8))
    journal = Journal(output, STAMP)
    for part in (kept, lost, changed):
        journal.add(part)
    journal.flush()
    (tmp_path / "detections" / lost.name).unlink()
    (tmp_path / "detections" / changed.name).write_bytes(b"cut")
    assert done_parts(output, STAMP) == [kept]


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"stamp": STAMP.fields(), "parts": [{"first": 1}]})])
def test_a_damaged_journal_only_costs_reading(tmp_path: Path, text: str) -> None:
    output = locate(tmp_path)
    part = _write(output, 0, 3)
    (tmp_path / "_parts").mkdir()
    (tmp_path / "_parts" / "a.json").write_text(text)
    assert done_parts(output, STAMP) == [part]


def test_parts_and_journals_of_another_run_are_not_ours(tmp_path: Path) -> None:
    output = locate(tmp_path)
    other = Stamp(fingerprint="other", manifest="beef")
    part = _write(output, 0, 3, other)
    journal = Journal(output, other)
    journal.add(part)
    journal.flush()
    assert done_parts(output, STAMP) == []


def test_of_parts_that_overlap_the_first_counts(tmp_path: Path) -> None:
    output = locate(tmp_path)
    parts = [_write(output, 0, 3), _write(output, 2, 5), _write(output, 4, 7)]
    assert done_parts(output, STAMP) == [parts[0], parts[2]]


def test_the_journal_writes_in_files_of_bounded_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "FILE_PARTS", 3)
    journal = Journal(locate(tmp_path), STAMP)
    for start in range(8):
        journal.add(_part(start, start))
    journal.flush()
    found = [json.loads(file.read_text())["parts"] for file in sorted((tmp_path / "_parts").iterdir())]
    assert [len(parts) for parts in found] == [3, 3, 2]
    assert [part["first"] for parts in found for part in parts] == list(range(8))


def test_tasks_are_small(tmp_path: Path) -> None:
    task = plan_tasks([], 64, 64)[0]
    assert isinstance(task, pa.Table)
    assert task.nbytes < 100
