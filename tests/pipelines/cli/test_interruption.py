"""Signals to a command that gets time to end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from pipelines.cli.interruption import Interrupted, patient_stop

SCRIPT = """
    import sys, time
    from pipelines.cli.interruption import Interrupted, patient_stop
    try:
        with patient_stop(float(sys.argv[1])) as stop:
            print("ready", flush=True)
            while stop.number is None:
                time.sleep(0.01)
            print("asked", flush=True)
            time.sleep(30)
    except Interrupted as error:
        print(error.exit_code, flush=True)
"""


@pytest.mark.parametrize(
    ("seconds", "signals", "said"),
    [
        ("1", [signal.SIGTERM], ["asked", "143"]),
        ("20", [signal.SIGINT, signal.SIGINT], ["asked", "130"]),
        ("20", [signal.SIGTERM, signal.SIGINT], ["asked", "143"]),
        ("0", [signal.SIGINT], ["130"]),
    ],
)
def test_the_second_signal_or_the_end_of_the_time_leaves(seconds: str, signals: list[int], said: list[str]) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), seconds]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    found = []
    for number in signals:
        process.send_signal(number)
        found.append(process.stdout.readline().strip())
    found.append(process.stdout.readline().strip())
    assert [line for line in found if line] == said
    process.communicate(timeout=10)


def test_handlers_and_another_alarm_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    alarm = signal.getitimer(signal.ITIMER_REAL)[0]
    with patient_stop(30) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert stop.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(alarm, abs=5)


@pytest.mark.parametrize("seconds", [30, 0])
def test_an_alarm_of_somebody_else_is_theirs_and_no_wish_to_stop(seconds: int) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    try:
        with patient_stop(seconds) as stop:
            signal.raise_signal(signal.SIGALRM)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGALRM, before)
    assert heard == [signal.SIGALRM]


def test_in_another_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with patient_stop(1):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_what_is_raised_is_a_keyboard_interrupt() -> None:
    assert isinstance(Interrupted(), KeyboardInterrupt)
    assert (Interrupted().exit_code, Interrupted(number=signal.SIGTERM).exit_code) == (130, 143)
