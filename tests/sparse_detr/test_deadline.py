from __future__ import annotations

import threading
import time

import pytest

from sparse_detr.deadline import within


def test_result_and_error_come_through() -> None:
    assert within(5.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 / 0)
    with pytest.raises(SystemExit):
        within(5.0, lambda: exec("raise SystemExit(3)"))


def test_late_work_is_left_behind() -> None:
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer in 0 s"):
        within(0.1, release.wait)
    assert time.monotonic() - started < 2
    release.set()
