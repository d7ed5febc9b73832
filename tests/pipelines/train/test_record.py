"""What a run's restarts cost, from facts with their times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.train.engine.news import Begun, Ended, Fact, NewsBox, StepDone
from pipelines.train.record import EVENTS_FILE, RunRecord
from sparse_detr.errors import StoreUnavailableError
from sparse_detr.storage.location import Location, locate


def taken(*facts: tuple[float, Fact]) -> RunRecord:
    record = RunRecord()
    for at, fact in facts:
        record.take(at, fact)
    return record


def steps(first: int, last: int, start: float) -> list[tuple[float, Fact]]:
    """A step a second."""
    return [(start + place, StepDone(step=step)) for place, step in enumerate(range(first, last + 1))]


LOST_A_NODE = (
    (100.0, Begun(workers=2, step=0)),
    *steps(1, 22, 101.0),
    (130.0, Ended(kind="failure", cause="worker 1 died")),
    (150.0, Begun(workers=1, step=20)),
    *steps(21, 30, 152.0),
)


def test_steps_redone_and_time_lost_end_at_the_first_new_step() -> None:
    summary = taken(*LOST_A_NODE).summary()
    [restart] = summary["restarts"]
    assert restart == {
        "kind": "failure", "cause": "worker 1 died", "at": 130.0, "step": 22, "from_step": 20, "workers": 1,
        "steps_redone": 2, "seconds_lost": 32.0,
    }  # fmt: skip
    assert summary["workers"] == [
        {"at": 100.0, "step": 0, "workers": 2},
        {"at": 150.0, "step": 20, "workers": 1},
    ]
    assert (summary["steps_redone"], summary["seconds_lost"]) == (2, 32.0)


def test_workers_that_fail_before_they_train_add_up() -> None:
    record = taken(
        (0.0, Begun(workers=2, step=0)),
        *steps(1, 5, 1.0),
        (6.0, Ended(kind="failure", cause="first")),
        (7.0, Ended(kind="failure", cause="second")),
        (9.0, Begun(workers=2, step=4)),
        *steps(5, 6, 10.0),
    )
    assert [(each.cause, each.steps_redone, each.seconds_lost) for each in record.restarts] == [
        ("first", 0, None),
        ("second", 1, 6.0),
    ]


def test_a_command_that_is_resumed_goes_on_with_the_record(tmp_path: Path) -> None:
    output = locate(tmp_path)
    taken(*LOST_A_NODE).save(output)
    record = RunRecord.continued(output, 895.0)
    assert not record.running
    for at, fact in [(900.0, Begun(workers=2, step=25)), *steps(26, 31, 901.0)]:
        record.take(at, fact)
    [node, driver] = record.summary()["restarts"]
    assert node["cause"] == "worker 1 died"
    assert (driver["kind"], driver["step"], driver["from_step"], driver["steps_redone"]) == ("driver", 30, 25, 5)
    assert driver["seconds_lost"] == 906.0 - 895.0
    assert [each["workers"] for each in record.summary()["workers"]] == [2, 1, 2]


def test_a_run_that_was_complete_and_gets_more_epochs_lost_nothing(tmp_path: Path) -> None:
    output = locate(tmp_path)
    record = taken((100.0, Begun(workers=2, step=0)), *steps(1, 24, 101.0))
    record.complete = True
    record.save(output)
    record = RunRecord.continued(output, 5000.0)
    for at, fact in [(5020.0, Begun(workers=1, step=24)), *steps(25, 36, 5021.0)]:
        record.take(at, fact)
    assert record.summary()["restarts"] == []
    assert [each["workers"] for each in record.summary()["workers"]] == [2, 1]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"restarts": [{}], "workers": []}'])
def test_a_record_that_cannot_be_read_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / EVENTS_FILE).write_bytes(content)
    assert RunRecord.continued(locate(tmp_path), 0.0).summary()["restarts"] == []


def test_a_store_that_is_away_for_a_moment_hides_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = locate(tmp_path)
    taken(*LOST_A_NODE).save(output)
    refused: list[str] = []

    def away_at_first(name: str) -> Callable[[Location], Any]:
        real = getattr(Location, name)

        def asked(self: Location) -> Any:
            if name not in refused:
                refused.append(name)
                raise StoreUnavailableError(f"{self.uri}: away")
            return real(self)

        return asked

    for name in ("exists", "read_bytes"):
        monkeypatch.setattr(Location, name, away_at_first(name))
    assert RunRecord.continued(output, 895.0).step == 30
    assert refused == ["exists", "read_bytes"]


def test_the_box_gives_every_fact_once_and_again_if_the_answer_was_lost() -> None:
    box = NewsBox()
    box.put(StepDone(step=1))
    first = box.news("", 0)
    assert [fact for _, fact in first.facts] == [StepDone(step=1)]
    box.put(StepDone(step=2))
    assert [fact for _, fact in box.news(first.box, first.count).facts] == [StepDone(step=2)]
    again = box.news(first.box, first.count)
    assert [fact for _, fact in again.facts] == [StepDone(step=2)]
    assert box.news(again.box, again.count).facts == ()
    restarted = NewsBox()
    restarted.put(StepDone(step=3))
    assert [fact for _, fact in restarted.news(again.box, again.count).facts] == [StepDone(step=3)]
