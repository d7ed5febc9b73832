"""One job at a time on one output: races, dead owners, owners on other machines, in a folder and in a store."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparse_detr.errors import OutputExistsError
from sparse_detr.storage import lease
from sparse_detr.storage.lease import held
from sparse_detr.storage.location import Location, locate

RACERS = 4


@pytest.fixture(params=["folder", "store"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "folder":
        return locate(tmp_path / "out")
    found: Location = request.getfixturevalue("store")
    return found


def _race(uri: str, rounds: int, barrier: Any, results: Any) -> None:
    for number in range(rounds):
        output = locate(f"{uri}/{number}")
        barrier.wait()
        try:
            with held(output):
                results.put((number, "held"))
                barrier.wait()
        except OutputExistsError:
            results.put((number, "refused"))
            barrier.wait()


def test_of_several_that_start_together_one_holds_it_always(output: Location) -> None:
    rounds = 20
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(RACERS), context.Queue()
    racers = [context.Process(target=_race, args=(output.uri, rounds, barrier, results)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    seen = [results.get(timeout=120) for _ in range(rounds * RACERS)]
    for racer in racers:
        racer.join(60)
    for number in range(rounds):
        assert sorted(what for n, what in seen if n == number) == ["held"] + ["refused"] * (RACERS - 1)


def test_it_is_free_after_the_end_and_names_its_holder_before(output: Location) -> None:
    with held(output, field="run.output"):
        with pytest.raises(
            OutputExistsError, match=rf"^run\.output: .*held by a job that runs: .*process {os.getpid()}"
        ):
            held(output, field="run.output").__enter__()
        time.sleep(0.1)
    with held(output) as again:
        again.check()
    assert len(output.child(lease.FOLDER).list()) == 1


KILLED = """
import sys, time
from sparse_detr.storage.lease import held
from sparse_detr.storage.location import locate
with held(locate(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def killed_owner(output: Location) -> Location:
    process = subprocess.Popen([sys.executable, "-c", KILLED, output.uri], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return output


def test_a_killed_owner_on_this_machine_is_known_to_be_dead_at_once(killed_owner: Location) -> None:
    started = time.monotonic()
    with held(killed_owner) as found:
        found.check()
    assert time.monotonic() - started < lease.DEAD_SECONDS / 2


def test_one_of_several_takes_over_a_dead_owner_s(killed_owner: Location) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(RACERS), context.Queue()
    racers = [context.Process(target=_take, args=(killed_owner.uri, barrier, results)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    seen = sorted(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join(60)
    assert seen == ["held"] + ["refused"] * (RACERS - 1)


def _take(uri: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        with held(locate(uri)):
            results.put("held")
            barrier.wait()
    except OutputExistsError:
        results.put("refused")
        barrier.wait()


def _elsewhere(output: Location, beat: int = 3) -> Location:
    """A lease of another machine."""
    file = output.child(lease.FOLDER, "00000001.json")
    owner = {"id": "x", "user": "ann", "host": "elsewhere", "pid": 1, "process": "b s/1", "started": "t", "beat": beat}
    file.write_bytes(json.dumps(owner).encode())
    return file


def test_an_owner_elsewhere_without_heartbeat_is_waited_for_and_taken_over(
    output: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "DEAD_SECONDS", 1.0)
    _elsewhere(output)
    started = time.monotonic()
    with held(output) as found:
        found.check()
    assert time.monotonic() - started >= 1.0


def test_an_owner_elsewhere_whose_heart_beats_is_left_alone(output: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.2)
    _elsewhere(output)
    reads = []
    read = lease._read

    def beating(folder: Location, number: int) -> Any:
        reads.append(number)
        _elsewhere(output, beat=len(reads))
        return read(folder, number)

    monkeypatch.setattr(lease, "_read", beating)
    with pytest.raises(OutputExistsError, match="ann on elsewhere"):
        held(output).__enter__()


def test_an_owner_that_was_taken_over_learns_it(output: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    with held(output) as found:
        file = output.child(lease.FOLDER, "00000002.json")
        owner = {"id": "y", "user": "bob", "host": "other", "pid": 2, "process": "p", "started": "t"}
        file.write_bytes(json.dumps(owner).encode())
        deadline = time.monotonic() + 20
        while not found.lost.is_set() and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(OutputExistsError, match="taken over by bob on other"):
            found.check()


def test_what_is_no_lease_counts_as_a_dead_owner(output: Location) -> None:
    output.child(lease.FOLDER, "00000001.json").write_bytes(b"")
    with held(output) as found:
        found.check()
