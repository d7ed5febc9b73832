"""Messages of Ray past Python go to a file that is named; those of Python still show."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines.cluster.ray_log import native_errors_to

CHATTER = ("(pid=", " pid=", "RayTrainWorker", "Reporting training result", "core_worker", "Token authentication",
           "constructor arguments", "Traceback")  # fmt: skip


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)


def test_native_messages_go_to_a_file_that_is_named(tmp_path: Path) -> None:
    done = _run("""
        import os, sys
        from pipelines.cluster.ray_log import kept_aside
        with kept_aside(lambda text: print(text, file=sys.stderr)):
            os.write(2, b"native\\n")
            print("ours", file=sys.stderr)
        os.write(2, b"after\\n")
    """)
    ours, named, after = done.stderr.splitlines()
    assert (ours, after) == ("ours", "after")
    log = Path(named.removeprefix("Ray's messages: "))
    assert log.read_text() == "native\n"
    assert log.stat().st_mode & 0o077 == 0
    log.unlink()


def test_what_no_encoding_can_hold_still_shows(tmp_path: Path) -> None:
    done = _run(f"""
        import sys
        from pathlib import Path
        from pipelines.cluster.ray_log import native_errors_to
        with native_errors_to(Path({str(tmp_path / "log")!r})):
            print("name \\udcff", file=sys.stderr)
    """)
    assert done.stderr == "name \\udcff\n"


def test_nothing_is_named_where_nothing_was_said() -> None:
    done = _run("""
        import sys
        from pipelines.cluster.ray_log import kept_aside
        with kept_aside(lambda text: print(text, file=sys.stderr)):
            print("ours", file=sys.stderr)
    """)
    assert done.stderr == "ours\n"


def test_a_stream_of_its_own_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with native_errors_to(tmp_path / "log"):
        sys.stderr.write("ours\n")
    assert capsys.readouterr().err == "ours\n"
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_train_and_predict_show_nothing_of_ray(shapes_folder: Path, tmp_path: Path) -> None:
    small = {"data.short-side": 64, "data.max-side": 64, "data.augment.max-side": 64, "data.augment.crop-min": 48,
             "data.augment.crop-max": 64, "model.channels": 64, "model.heads": 4, "model.feedforward-channels": 64,
             "model.queries": 12, "training.global-batch": 8, "training.workers": 1, "training.epochs": 1}  # fmt: skip
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    for split in ("train", "val"):
        options += [f"--data.{split}-annotations", str(shapes_folder / f"{split}.json"),
                    f"--data.{split}-images", str(shapes_folder / split)]  # fmt: skip
    command = [sys.executable, "-m", "pipelines.cli"]
    train = [*command, "train", "tiny", "--output", "run", *options, "--data.augment.short-sides", "56", "64"]
    predict = [*command, "predict", "--model", "run/model", "--images", str(shapes_folder / "val"), "--output", "found"]
    for words in (train, predict):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert [text for text in CHATTER if text in said] == [], said
        named = re.findall(r"Ray's messages: (\S+)", said)
        # Ray Data's actors always say that they could not restart; where they stop doing so, nothing is named.
        assert all("core_worker" in Path(log).read_text() for log in named)
        for log in named:
            Path(log).unlink()
