"""The time of each step, and what shows of it."""

from __future__ import annotations

import time

import pytest
from rich.console import Console

from pipelines.demo.steps import Steps


def test_steps_are_timed_and_a_failed_one_is_not_done() -> None:
    console = Console(record=True, force_terminal=False, width=100)
    with Steps(console, 2) as steps:
        with steps.step("One") as bar:
            bar.move(1, 2)
            bar.note = "[3] things"
            time.sleep(0.05)
        with pytest.raises(RuntimeError), steps.step("Two"):
            raise RuntimeError
    (done,) = steps.done
    assert (done.name, done.note) == ("One", "[3] things")
    assert 0.05 <= done.seconds < 5
    assert "1/2 One: 0 s, [3] things" in console.export_text()
