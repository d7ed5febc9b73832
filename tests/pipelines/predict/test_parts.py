"""Parts, what tells them apart, and the forms that are made of them at the end."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.detect.images import ImageFailure, ImageResult
from pipelines.detect.rows import SCHEMA, results_table
from pipelines.predict import finish
from pipelines.predict.parts import (
    ParquetSink,
    Part,
    Stamp,
    inspect_part,
    part_rows,
    read_detections,
    read_part,
    write_part,
)
from sparse_detr.errors import StorageError
from sparse_detr.records import Classes, Detections
from sparse_detr.storage.location import Location, locate

CLASSES = Classes(names=("disc", "square", "star"), category_ids=(2, 5, 9))
STAMP = Stamp(fingerprint="f00d", manifest="beef")
FOUND = Detections(
    scores=torch.tensor([0.9, 0.4]),
    labels=torch.tensor([2, 0]),
    boxes=torch.tensor([[1.0, 2.0, 30.5, 40.0], [-0.5, 0.0, 10.0, 12.0]]),
)
GONE = ImageFailure(stage="fetch", type="StorageError", message='gone, and "why"')


def _table(start: int = 0, bad: tuple[int, ...] = (1,), count: int = 3) -> pa.Table:
    results = [
        ImageResult(index=i, key=f"{i}.jpg", failure=GONE)
        if i in bad
        else ImageResult(index=i, key=f"{i}.jpg", size=(40, 50), detections=FOUND)
        for i in range(start, start + count)
    ]
    ids = [100 + result.index for result in results]
    return results_table(results, ids, root="s3://b/i", classes=CLASSES, fingerprint="f00d")


@pytest.fixture
def output(tmp_path: Path) -> Location:
    return locate(tmp_path)


def test_a_part_is_what_its_record_says(output: Location, tmp_path: Path) -> None:
    part = write_part(output, 3, _table(3, bad=(4,)), STAMP)
    data = (tmp_path / "detections" / "part-0000000003-0000000005.parquet").read_bytes()
    expected = Part(first=3, last=5, size=len(data), sha256=hashlib.sha256(data).hexdigest(), detections=4, errors=1)
    assert part == expected
    assert (part.rows, part_rows(part.name)) == (3, (3, 5))
    assert inspect_part(output, part.name, STAMP) == part
    assert read_part(output, 3, 5).equals(_table(3, bad=(4,)))


@pytest.mark.parametrize("other", [replace(STAMP, fingerprint="x"), replace(STAMP, manifest="x")])
def test_a_part_of_another_run_is_none_of_this(output: Location, other: Stamp) -> None:
    part = write_part(output, 0, _table(), other)
    assert inspect_part(output, part.name, STAMP) is None


def test_what_is_damaged_or_of_another_length_is_no_part(output: Location, tmp_path: Path) -> None:
    part = write_part(output, 0, _table(), STAMP)
    file = tmp_path / "detections" / part.name
    data = file.read_bytes()
    for damaged in (b"", data[:-1], data[: len(data) // 2], b"x" * len(data)):
        file.write_bytes(damaged)
        assert inspect_part(output, part.name, STAMP) is None
    file.write_bytes(data)
    longer = file.rename(file.with_name("part-0000000000-0000000003.parquet"))
    assert inspect_part(output, longer.name, STAMP) is None
    assert inspect_part(output, "notes.parquet", STAMP) is None


def test_parts_keep_schema_and_order_and_are_replaced_not_doubled(output: Location, tmp_path: Path) -> None:
    for start in (3, 0, 0):
        write_part(output, start, _table(start), STAMP)
    assert [table.num_rows for table in read_detections(output)] == [3, 3]
    together = pq.read_table(tmp_path / "detections")
    assert together.schema.equals(SCHEMA)
    assert together.column("key").to_pylist() == [f"{i}.jpg" for i in range(6)]


def test_reading_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        list(read_detections(locate(tmp_path)))
    (tmp_path / "detections").mkdir()
    (tmp_path / "detections" / "part-0000000000-0000000000.parquet").write_bytes(b"not Parquet")
    with pytest.raises(StorageError, match=r"part-0000000000-0000000000\.parquet"):
        list(read_detections(locate(tmp_path)))


def _block(first: int, last: int, rows: Sequence[int] | None = None) -> pa.Table:
    index = range(first, last + 1) if rows is None else rows
    table = pa.table({"index": pa.array(index, pa.int64())})
    return table.replace_schema_metadata({"first": str(first), "last": str(last)})


def test_rows_done_again_take_the_place_of_their_errors_alone(output: Location) -> None:
    sink = ParquetSink(output=output.uri, stamp=STAMP)
    sink(_block(10, 14), _table(10, bad=(11, 13), count=5))
    again = _table(10, bad=(13,), count=5).filter(pc.is_in(pa.array([0, 1, 0, 1, 0]), pa.array([1])))
    assert again.column("key").to_pylist() == ["11.jpg", "13.jpg"]
    summary = sink(_block(10, 14, [11, 13]), again).to_pylist()[0]
    assert (summary["errors"], summary["detections"]) == (1, 8)
    assert read_part(output, 10, 14).equals(_table(10, bad=(13,), count=5))


def test_a_block_that_was_done_again_before_its_worker_died_is_done(output: Location) -> None:
    sink = ParquetSink(output=output.uri, stamp=STAMP)
    first = sink(_block(0, 2), _table(0, bad=()))
    assert sink(_block(0, 2, []), _table(0, bad=()).slice(0, 0)).to_pylist() == first.to_pylist()


def test_the_same_image_twice_keeps_both_rows_apart(output: Location) -> None:
    sink = ParquetSink(output=output.uri, stamp=STAMP)
    place = SCHEMA.get_field_index("key")
    twice = _table(0, bad=(0, 2)).set_column(place, SCHEMA.field("key"), pa.array(["a", "b", "a"]))
    sink(_block(0, 2), twice)
    sink(_block(0, 2, [0, 2]), twice.take(pa.array([0, 2])))
    assert read_part(output, 0, 2).column("image_id").to_pylist() == [100, 101, 102]


def test_strays_are_deleted_at_the_end(output: Location, parts: list[Part], tmp_path: Path) -> None:
    (tmp_path / "detections" / "part-0000000009-0000000009.parquet").write_bytes(b"cut")
    (tmp_path / "detections" / "notes.txt").write_bytes(b"the user's own")
    finish.delete_others(output, parts)
    assert sorted(file.name for file in (tmp_path / "detections").iterdir()) == [
        "notes.txt", *(part.name for part in parts),
    ]  # fmt: skip


def test_a_store_that_is_away_leaves_a_block_undone_and_other_errors_end_the_run(output: Location) -> None:
    sink = ParquetSink(output=output.uri, stamp=STAMP)
    assert sink.failed(("StoreUnavailableError", "busy")).to_pylist()[0]["undone"] == "busy"
    row = sink.failed(("StorageError", "full")).to_pylist()[0]
    assert (row["undone"], row["user_error"]) == (None, {"kind": "StorageError", "message": "full"})


@pytest.fixture
def parts(output: Location) -> list[Part]:
    return [write_part(output, start, _table(start, bad=(1, 4)), STAMP) for start in (0, 3)]


def test_errors_are_a_table_of_their_own(output: Location, parts: list[Part], tmp_path: Path) -> None:
    shown = finish.write_errors(output, parts, 1)
    table = pq.read_table(tmp_path / "errors.parquet")
    assert table.schema.equals(finish.ERRORS_SCHEMA)
    expected = [
        {"uri": f"s3://b/i/{i}.jpg", "key": f"{i}.jpg", "image_id": 100 + i, "stage": "fetch",
         "type": "StorageError", "message": GONE.message}
        for i in (1, 4)
    ]  # fmt: skip
    assert table.to_pylist() == expected
    assert shown == expected[:1]


def test_a_run_without_errors_has_an_empty_table(output: Location, tmp_path: Path) -> None:
    assert finish.write_errors(output, [write_part(output, 0, _table(bad=()), STAMP)], 5) == []
    assert pq.read_table(tmp_path / "errors.parquet").schema.equals(finish.ERRORS_SCHEMA)


def test_coco_and_csv_hold_every_box_once(output: Location, parts: list[Part]) -> None:
    entries = json.loads(finish.write_coco_results(output, parts).read_bytes())
    assert [entry["image_id"] for entry in entries] == [100, 100, 102, 102, 103, 103, 105, 105]
    assert entries[0]["bbox"] == pytest.approx([1.0, 2.0, 29.5, 38.0])
    lines = list(csv.DictReader(finish.write_csv(output, parts).read_bytes().decode().splitlines()))
    assert [line["uri"][-5:] for line in lines] == [f"{i}.jpg" for i in (0, 0, 2, 2, 3, 3, 5, 5)]
    first: dict[str, Any] = lines[0]
    assert (first["label"], first["category_id"], first["name"], first["score"]) == ("2", "9", "star", "0.9")
    assert [float(first[name]) for name in ("x0", "y0", "x1", "y1")] == [1.0, 2.0, 30.5, 40.0]


def test_no_box_at_all_is_still_valid_json(output: Location) -> None:
    part = write_part(output, 0, _table(bad=(0, 1, 2)), STAMP)
    assert json.loads(finish.write_coco_results(output, [part]).read_bytes()) == []
