"""The driver's look at a training from beside, whatever becomes of the training or of the box with the news."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipelines.cli.interruption import Stop
from pipelines.recipes.config import TrainingConfig
from pipelines.train import watch as watch_module
from pipelines.train.engine.news import Begun, Ended, NewsBox, StepDone
from pipelines.train.engine.progress import Listeners, StepProgress
from pipelines.train.rank_hooks import tell
from pipelines.train.record import EVENTS_FILE, RunRecord
from pipelines.train.watch import Watch, waiting_for
from sparse_detr.storage.location import locate


@pytest.fixture
def box(ray_cluster: object) -> Any:
    return ray.remote(num_cpus=0, max_restarts=-1)(NewsBox).remote()


@pytest.fixture
def watch(box: Any, tmp_path: Path) -> Callable[..., Watch]:
    def made(**listeners: Any) -> Watch:
        return Watch(box, TrainingConfig(), locate(tmp_path), RunRecord(), Listeners(**listeners), Stop())

    return made


def _progress(step: int) -> StepProgress:
    return StepProgress(epoch=0, epochs=1, step=step, steps=9, metrics={"loss": 1.0})


def _until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_progress_shows_while_it_runs_and_once_more_at_the_end(box: Any, watch: Callable[..., Watch]) -> None:
    seen: list[StepProgress] = []
    with watch(on_progress=seen.append).watching():
        ray.get(box.put.remote(_progress(1)))
        _until(lambda: seen)
        ray.get(box.put.remote(_progress(2)))
    assert [progress.step for progress in seen] == [1, 2]


def test_nothing_of_it_calls_ray_after_ctrl_c(watch: Callable[..., Watch]) -> None:
    # A call that Ray's shutdown overtakes ends the process by SIGSEGV.
    running: list[bool] = []

    def stopped() -> None:
        running.extend(thread.name.startswith("progress") for thread in threading.enumerate())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watch().watching():
        stopped()
    assert any(running)
    assert not any(thread.name.startswith("progress") for thread in threading.enumerate())


def test_a_box_that_dies_comes_back_and_costs_at_most_some_news(box: Any, watch: Callable[..., Watch]) -> None:
    watching = watch()
    with watching.watching():
        tell(box, Begun(workers=2, step=0))
        tell(box, StepDone(step=1))
        _until(lambda: watching.record.step == 1)
        ray.kill(box, no_restart=False)
        for step in range(2, 400):
            tell(box, StepDone(step=step))
            if watching.record.step > 1:
                break
            time.sleep(0.1)
    assert watching.record.step > 1
    assert watching.record.restarts == []


def test_a_box_that_is_gone_for_good_or_stands_still_ends_and_delays_no_training(
    box: Any, watch: Callable[..., Watch]
) -> None:
    ray.get(box.put.remote(_progress(1)))
    pid = ray.get(box.__ray_call__.remote(lambda self: __import__("os").getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with watch().watching():
            for step in range(1, 3000):
                tell(box, StepDone(step=step))
            assert time.monotonic() - began < 10, "a worker waits for it"
        # One look that is under way, and the last.
        assert time.monotonic() - began < 30
    finally:
        os.kill(pid, signal.SIGCONT)
    ray.kill(box)
    seen: list[StepProgress] = []
    with watch(on_progress=seen.append).watching():
        tell(box, StepDone(step=1))
        time.sleep(1)
    assert not seen


def test_a_display_that_breaks_is_dropped_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box, shown = NewsBox(), list[str]()
    handle = SimpleNamespace(news=SimpleNamespace(remote=box.news))
    monkeypatch.setattr(watch_module, "ray", SimpleNamespace(get=lambda news, timeout: news, exceptions=ray.exceptions))

    def broken(what: object) -> None:
        shown.append(type(what).__name__)
        raise OSError(errno.EIO, "Input/output error")

    listeners = Listeners(on_progress=broken, on_notice=broken)
    watching = Watch(handle, TrainingConfig(), locate(tmp_path), RunRecord(), listeners, Stop())
    with caplog.at_level(logging.WARNING), watching.watching():
        for step in (1, 2):
            box.put(_progress(step))
            box.put(Ended(kind="failure", cause="worker 1 died"))
            _until(lambda: len(watching.record.restarts) == step)  # noqa: B023
        box.put(StepDone(step=3))
    assert sorted(shown) == ["StepProgress", "str"]
    assert watching.record.step == 3
    assert json.loads((tmp_path / EVENTS_FILE).read_text())["step"] == 3, "no record is left"
    assert [each.message.count("OSError: [Errno 5] Input/output error") for each in caplog.records] == [1, 1]


@pytest.mark.parametrize(
    ("has", "free", "text"),
    [
        ({"CPU": 1.0}, {"CPU": 1.0}, "waiting for 2 CPUs, the cluster has 1"),
        ({}, {}, "waiting for 2 CPUs, the cluster has 0"),
        ({"CPU": 4.0}, {"CPU": 1.0}, "waiting for 2 CPUs, of the cluster's 4 1 are free"),
        ({"CPU": 4.0}, {"CPU": 2.0}, ""),
    ],
)
def test_what_workers_wait_for(has: dict[str, float], free: dict[str, float], text: str) -> None:
    assert waiting_for({"CPU": 2.0}, has, free) == text
