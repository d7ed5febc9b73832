"""Progress shown from beside a training, whatever becomes of the training or of the board."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import ray

from pipelines.train.engine.progress import ProgressBoard, StepProgress
from pipelines.train.launch import watched


@pytest.fixture
def board(ray_cluster: object) -> Any:
    return ray.remote(num_cpus=0)(ProgressBoard).remote()


def _progress(step: int) -> StepProgress:
    return StepProgress(epoch=0, epochs=1, step=step, steps=9, metrics={"loss": 1.0})


def test_progress_shows_while_it_runs_and_once_more_at_the_end(board: Any) -> None:
    seen: list[StepProgress] = []
    with watched(board, seen.append):
        ray.get(board.post.remote(_progress(1)))
        deadline = time.monotonic() + 30
        while not seen and time.monotonic() < deadline:
            time.sleep(0.05)
        ray.get(board.post.remote(_progress(2)))
    assert [progress.step for progress in seen] == [1, 2]


def test_nothing_of_it_calls_ray_after_ctrl_c(board: Any) -> None:
    # A call that Ray's shutdown overtakes ends the process by SIGSEGV.
    running: list[bool] = []

    def stopped() -> None:
        running.extend(thread.name.startswith("progress") for thread in threading.enumerate())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), watched(board, lambda _: None):
        stopped()
    assert any(running)
    assert not any(thread.name.startswith("progress") for thread in threading.enumerate())


def test_a_board_that_died_ends_no_training(board: Any) -> None:
    ray.kill(board)
    seen: list[StepProgress] = []
    with watched(board, seen.append):
        time.sleep(1)
    assert not seen


def test_what_breaks_in_the_callback_is_raised(board: Any) -> None:
    ray.get(board.post.remote(_progress(1)))

    def broken(_: StepProgress) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError), watched(board, broken):
        pass
