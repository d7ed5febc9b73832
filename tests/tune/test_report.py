from __future__ import annotations

import json
from pathlib import Path

from pipelines.tracking.tracker import NullTracker
from sparse_detr.storage.location import locate
from tune.report import SweepResult, TrialResult, rows, write_report

GOOD = TrialResult(
    id="a", params={"keep_ratio": 0.1, "encoder_auxiliary_weight": 1.0}, metrics={"ap": 0.4, "ap50": 0.7}, model="/m"
)
BROKEN = TrialResult(
    id="b", params={"keep_ratio": 0.5, "encoder_auxiliary_weight": 0.0}, metrics={}, error="NotFiniteError: step 3"
)


def test_rows_show_numbers_and_errors() -> None:
    first, second = rows((GOOD, BROKEN))

    assert (first["keep ratio"], first["AP"], first["AP50"], first["error"]) == ("0.1", "0.400", "0.700", "")
    assert (second["AP"], second["error"]) == ("", "NotFiniteError: step 3")


def test_the_best_is_the_first_that_did_not_break() -> None:
    assert SweepResult(trials=(GOOD, BROKEN)).best == GOOD
    assert SweepResult(trials=(BROKEN,)).best is None
    assert SweepResult(trials=()).best is None


def test_the_record_lists_every_trial(tmp_path: Path) -> None:
    write_report(SweepResult(trials=(GOOD, BROKEN)), locate(tmp_path), NullTracker())

    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["best"] == "a"
    assert [trial["error"] for trial in record["trials"]] == [None, "NotFiniteError: step 3"]
