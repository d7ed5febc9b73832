"""The commands one after the other as a user types them: train, evaluate, predict, sweep, on the session's Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.cli import main as cli
from pipelines.cluster.session import RaySession

SMALL = {
    "data.short-side": 64,
    "data.max-side": 64,
    "data.augment.max-side": 64,
    "data.augment.crop-min": 48,
    "data.augment.crop-max": 64,
    "model.channels": 64,
    "model.heads": 4,
    "model.feedforward-channels": 64,
    "model.queries": 12,
    "training.global-batch": 8,
    "training.workers": 1,
    "training.epochs": 1,
}


def _options(folder: Path, prefix: str = "") -> list[str]:
    data = {f"data.{split}-{what}": folder / f"{split}{end}" for split in ("train", "val")
            for what, end in (("annotations", ".json"), ("images", ""))}  # fmt: skip
    options = [word for name, value in {**SMALL, **data}.items() for word in (f"--{prefix}{name}", str(value))]
    return [*options, f"--{prefix}data.augment.short-sides", "56", "64"]


@pytest.fixture(scope="module")
def model(shapes_folder: Path, ray_cluster: RaySession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run of the command `train`."""
    output = tmp_path_factory.mktemp("commands") / "run"
    assert cli.main(["train", "tiny", "--output", str(output), *_options(shapes_folder)]) == 0
    return output / "model"


@pytest.mark.slow
def test_train_then_evaluate(
    model: Path, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((model / "config.json").read_text())
    assert (config["model"]["channels"], config["model"]["heads"]) == (64, 4)
    arguments = ["--model", str(model), "--annotations", str(tmp_path / "val.json"), "--images",
                 str(shapes_folder / "val")]  # fmt: skip
    annotations = json.loads((shapes_folder / "val.json").read_text())
    annotations["annotations"][0]["bbox"][2] = -1
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    capsys.readouterr()
    assert cli.main(["evaluate", *arguments]) == 0
    out = capsys.readouterr().out
    assert "Boxes left out: 1\n  0" in out
    assert all(name in out for name in ("ap50", "ap75", "ar100", *config["classes"]["names"]))


@pytest.mark.slow
def test_train_then_predict(
    model: Path, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (shapes_folder / "val").glob("*.jpg"):
        (images / path.name).write_bytes(path.read_bytes())
    (images / "broken.jpg").write_bytes(b"")
    arguments = ["predict", "--model", str(model), "--images", str(images), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    assert "broken.jpg: decode" in capsys.readouterr().out.replace("\n", "")
    rows = pq.read_table(tmp_path / "out" / "detections").to_pylist()
    assert len(rows) == 9
    # The model tells its image size, so that nobody has to.
    settings = json.loads((tmp_path / "out" / "_run.json").read_text())["settings"]
    assert (settings["short_side"], settings["max_side"]) == (64, 64)
    assert [Path(row["uri"]).name for row in rows if row["error"] is not None] == ["broken.jpg"]
    # The same command again finds its work done; another setting is not what the rows were made with.
    assert cli.main(arguments) == 0
    assert "All images were done before" in capsys.readouterr().err
    assert cli.main([*arguments, "--score-threshold", "0.9"]) == 2
    assert "overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_does_not_write_over_another(
    model: Path, shapes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "tiny", "--output", str(model.parent), *_options(shapes_folder)]) == 2
    assert "holds the results of another run" in capsys.readouterr().err


@pytest.mark.slow
def test_sweep(
    shapes_folder: Path, ray_cluster: RaySession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    arguments = ["sweep", "tiny", "--trials", "2", "--space.keep-ratio", "0.25", "1.0", "--run.output", str(output)]
    assert cli.main([*arguments, *_options(shapes_folder, "run.")]) == 0
    trials = json.loads((output / "sweep.json").read_text())["trials"]
    assert {trial["params"]["keep_ratio"] for trial in trials} == {0.25, 1.0}
    out = capsys.readouterr().out
    assert all(trial["id"] in out for trial in trials)
    assert "0.25" in out


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_is_said_at_once(
    shapes_folder: Path, ray_cluster: RaySession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "tiny", "--output", str(tmp_path / "run"), *_options(shapes_folder)]
    assert cli.main([*arguments, "--training.workers", "8"]) == 2
    assert "training.workers: 8" in capsys.readouterr().err
