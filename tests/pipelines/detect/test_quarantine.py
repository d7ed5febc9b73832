"""Images that kill or hang the process that decodes them, and the watchdog that ends a process which hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.detect.quarantine import find_killers
from pipelines.detect.watchdog import EXIT_CODE

HOOKS = Path(__file__).parents[2] / "hooks"


@pytest.fixture
def bad_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start from now on have the hook."""
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in (str(HOOKS), *sys.path) if path))
    monkeypatch.setenv("PLAY_BAD_DECODER", "1")


def test_killers_are_found_among_sound_and_broken_images(bad_decoder: None, sound: dict[str, bytes]) -> None:
    files = [sound["00.jpg"], b"CRASH", b"", sound["01.jpg"], b"HANG", b"SLOW", b"not an image", b"ABORT"]
    found = find_killers(enumerate(files), 3.0)
    assert found.keys() == {1, 4, 5, 7}
    assert {failure.stage for failure in found.values()} == {"decode"}
    assert [found[i].type for i in (1, 4, 5, 7)] == [
        "ProcessDiedError", "TimeoutError", "TimeoutError", "ProcessDiedError",
    ]  # fmt: skip
    assert "signal 11" in found[1].message
    assert "signal 6" in found[7].message
    assert "3 s" in found[4].message


def test_sound_images_cost_one_process(sound: dict[str, bytes]) -> None:
    assert find_killers(enumerate(sound.values()), 30.0) == {}


@pytest.mark.parametrize("hang", ["time.sleep(1000)", "ctypes.PyDLL(None).sleep(1000)"])
def test_the_watchdog_ends_a_process_that_hangs_with_and_without_the_lock(hang: str) -> None:
    code = f"""
import ctypes, time
from pipelines.detect.watchdog import Watchdog
watch = Watchdog(1.0)
for _ in range(3):
    with watch.working():
        time.sleep(0.5)
print("alive", flush=True)
with watch.working():
    {hang}
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "alive\n"
    assert done.returncode in (1, EXIT_CODE)
    assert "sleep" in done.stderr or "line" in done.stderr
    assert time.monotonic() - started < 30
