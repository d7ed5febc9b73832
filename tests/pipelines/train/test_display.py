from __future__ import annotations

import io
import re

from rich.console import Console

from pipelines.train.display import TrainDisplay
from pipelines.train.engine.progress import StepProgress

STEP = {"loss": 12.3456, "loss_ce": 0.5, "loss_giou": 0.25, "lr": 2e-4, "images_per_second": 10.04, "data_wait": 0.031,
        "memory_mib": 2048.0}  # fmt: skip
EPOCH = {"epoch": 1.0, "loss": 11.5, "lr": 2e-4, "images_per_second": 9.5, "train_seconds": 61.2, "data_wait": 0.05}


def _at(step: int, metrics: dict[str, float], epoch: int = 0) -> StepProgress:
    return StepProgress(epoch=epoch, epochs=3, step=step, steps=300, metrics=metrics)


def _shown(*, terminal: bool) -> tuple[TrainDisplay, io.StringIO, list[float]]:
    output, now = io.StringIO(), [0.0]
    console = Console(file=output, force_terminal=terminal, width=160, color_system=None)
    return TrainDisplay(console, lambda: now[0]), output, now


def _plain(output: io.StringIO) -> list[str]:
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).split("\n")]


def test_a_file_gets_a_line_an_epoch_and_one_a_minute() -> None:
    display, output, now = _shown(terminal=False)
    with display:
        for step in range(1, 100):
            now[0] += 1.0
            display.report(_at(step, STEP))
        display.report(_at(100, EPOCH | {"ap": 0.1, "ap50": 0.2, "ap75": 0.05}, epoch=1))
        display.report(_at(200, EPOCH | {"epoch": 2.0}, epoch=2))
    assert "\x1b" not in output.getvalue()
    first, second, titles, one, two, end = _plain(output)
    assert first == "step 1 of 300: loss 12.346 (class 0.50, GIoU 0.25)  10.0 images/s  3% waiting for data  2.0 GiB"
    assert second.startswith("step 61 of 300: ")
    assert titles.split() == ["epoch", "loss", "AP", "AP50", "AP75", "rate", "images/s", "waiting", "seconds"]
    assert one.split() == ["1", "11.500", "0.100", "0.200", "0.050", "2.0e-04", "9.5", "5%", "61"]
    assert two.split() == ["2", "11.500", "-", "-", "-", "2.0e-04", "9.5", "5%", "61"]
    assert len(titles) == len(one) == len(two)
    assert end == ""


def test_an_epoch_that_is_told_twice_has_one_row() -> None:
    display, output, _ = _shown(terminal=False)
    with display:
        display.report(_at(100, EPOCH, epoch=1))
        display.report(_at(100, EPOCH, epoch=1))
    assert len([line for line in _plain(output) if line.strip().startswith("1 ")]) == 1


def test_a_terminal_has_a_bar_below_the_rows() -> None:
    display, output, _ = _shown(terminal=True)
    with display:
        assert output.getvalue() == ""
        display.report(_at(50, STEP))
        display.report(_at(100, EPOCH, epoch=1))
        display.report(_at(150, STEP, epoch=1))
    text = "\n".join(_plain(output))
    assert "Epoch 2/3  step 150/300" in text
    assert "loss 12.346 (class 0.50, GIoU 0.25)  10.0 images/s  3% waiting for data  2.0 GiB" in text
    assert text.count("images/s waiting") == 1
    assert output.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in output.getvalue()  # the cursor is back
