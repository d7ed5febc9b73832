"""Counts equal those of the whole table, however it is cut; the choice is one of chance, and bounded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.predict.parts import read_detections
from pipelines.view.tally import BINS, EXAMPLES, Tally
from sparse_detr.storage.location import locate

NAMES = ("disc", "square", "star", "rare")


def _rows(count: int) -> list[dict[str, Any]]:
    chance = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        if chance.random() < 0.15:
            error = (chance.choice(["fetch", "decode"]), chance.choice(["StorageError", "ImageError"]), f"no {number}")
            rows.append({"key": f"{number}.jpg", "error": error})
            continue
        boxes = [(chance.randrange(3), chance.uniform(0.25, 1.0), 1, 2, 30, 40) for _ in range(chance.randrange(5))]
        rows.append({"key": f"{number}.jpg", "boxes": boxes})
    rows[count // 2] = {"key": "rare.jpg", "boxes": [(3, 1.0, 1, 2, 30, 40)]}
    return rows


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., None]) -> pa.Table:
    output = locate(tmp_path_factory.mktemp("out"))
    make_run(output, "/r", _rows(300), names=NAMES, parts=7)
    return pa.concat_tables(read_detections(output))


def _tally(table: pa.Table, cut: int, pictures: int = 20, seed: int = 0) -> Tally:
    tally = Tally(pictures, seed)
    for start in range(0, table.num_rows, cut):
        tally.add(start, table.slice(start, cut))
    return tally


@pytest.mark.parametrize("cut", [1, 7, 64, 300])
def test_counts_equal_those_of_the_table(table: pa.Table, cut: int) -> None:
    tally, rows = _tally(table, cut), table.to_pylist()
    found = [box for row in rows for box in row["detections"]]
    failed = [row["error"] for row in rows if row["error"] is not None]
    assert (tally.images, tally.boxes, tally.errors) == (300, len(found), len(failed))
    assert tally.without_boxes == sum(row["error"] is None and not row["detections"] for row in rows)
    assert {one.name: one.boxes for one in tally.classes} == Counter(box["name"] for box in found)
    of_images = Counter(name for row in rows for name in {box["name"] for box in row["detections"]})
    assert {one.name: one.images for one in tally.classes} == of_images
    assert [one.boxes for one in tally.classes] == sorted((one.boxes for one in tally.classes), reverse=True)
    assert tally.histogram.tolist() == np.histogram([box["score"] for box in found], BINS, (0, 1))[0].tolist()
    assert tally.histogram.sum() == len(found)
    assert {(kind.stage, kind.type): kind.images for kind in tally.kinds} == Counter(
        (error["stage"], error["type"]) for error in failed
    )
    assert all(len(kind.examples) == min(EXAMPLES, kind.images) for kind in tally.kinds)


def test_the_choice_is_the_same_however_the_table_is_cut_and_follows_the_seed(table: pa.Table) -> None:
    whole = [row["uri"] for row in _tally(table, 300).sample()]
    assert len(whole) == len(set(whole)) == 20
    assert [row["uri"] for row in _tally(table, 7).sample()] == whole
    assert [row["uri"] for row in _tally(table, 7, seed=1).sample()] != whole
    order = table.column("uri").to_pylist()
    assert [order.index(uri) for uri in whole] == sorted(order.index(uri) for uri in whole)
    failed = {row["uri"] for row in table.to_pylist() if row["error"] is not None}
    assert not failed & set(whole)


def test_a_rare_class_is_seen(table: pa.Table) -> None:
    for seed in range(5):
        assert any(row["uri"].endswith("rare.jpg") for row in _tally(table, 64, 4, seed).sample())


def test_chance_is_fair(table: pa.Table) -> None:
    """Each sound image is chosen about equally often: 200 draws of 20 among some 255."""
    counts = Counter(row["uri"] for seed in range(200) for row in _tally(table, 300, seed=seed).sample())
    del counts["/r/rare.jpg"]
    sound = sum(row["error"] is None for row in table.to_pylist()) - 1
    assert len(counts) == sound
    assert 3 <= min(counts.values()) <= max(counts.values()) <= 40


def test_no_more_than_there_are_and_none_if_none_are_wanted(table: pa.Table) -> None:
    assert _tally(table, 64, pictures=0).sample() == []
    assert len(_tally(table, 64, pictures=1000).sample()) == 300 - _tally(table, 64).errors
    assert Tally(5).sample() == []


def test_memory_does_not_grow_with_rows(table: pa.Table) -> None:
    tally = Tally(10)
    for turn in range(50):
        tally.add(turn * table.num_rows, table)
    assert tally.images == 50 * 300
    assert len(tally._by_chance) == 10
    assert len(tally._of_class) == len(NAMES)
    assert sum(len(kind.examples) for kind in tally.kinds) <= 4 * EXAMPLES
