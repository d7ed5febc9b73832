"""What the verbs train and sweep show before the first step, and what MLflow gets of it. Without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster.session import RaySession
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.tracking.tracker import NullTracker
from pipelines.train.engine.build import with_classes
from pipelines.train.engine.initial_weights import StartReport, initial_model
from pipelines.train.preflight import CheckedData, RunStart, check_data
from sparse_detr.records import Classes
from sparse_detr.storage.location import Location
from sparse_detr.weights.model_folder import save_model

CLASSES = Classes(names=("cell",), category_ids=(1,))


class Recorder(NullTracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {}

    def metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.kept |= metrics

    def tags(self, tags: Mapping[str, str]) -> None:
        self.kept |= tags

    def text(self, text: str, name: str) -> None:
        self.kept[name] = text


def _start(dropped: int) -> RunStart:
    boxes = tuple(f"train.json: {i}.jpg: annotation {i}: box [0, 0, 0, 9] has no area" for i in range(dropped))
    data = CheckedData(classes=CLASSES, train_images=70, val_images=30, dropped=boxes)
    fresh = ("backbone.layer4.0.conv1.weight", "backbone.layer4.1.conv1.weight")
    return RunStart(data=data, weights=StartReport(source="r18.safetensors", loaded=("a", "b", "c"), fresh=fresh))


def test_the_first_boxes_are_shown_and_all_of_them_counted() -> None:
    text = _start(dropped=45).describe()

    assert "70 training images, 30 validation images" in text
    assert "Boxes left out: 45" in text
    assert "train.json: 0.jpg: annotation 0: box [0, 0, 0, 9] has no area" in text
    assert "annotation 44:" not in text
    assert "Starting weights: r18.safetensors: 3 tensors loaded; fresh: 2 (backbone.layer4)" in text


def test_mlflow_gets_all_boxes_and_all_names() -> None:
    tracker = Recorder()
    _start(dropped=45).record(tracker)

    assert tracker.kept["dropped_boxes"] == 45
    assert "annotation 44:" in tracker.kept["dropped_boxes.txt"]
    assert "fresh: 2 (backbone.layer4)" in tracker.kept["sparse_detr.starting_weights"]
    assert "fresh: backbone.layer4.1.conv1.weight" in tracker.kept["starting_weights.txt"]


def test_nothing_is_listed_where_nothing_was_lost() -> None:
    tracker = Recorder()
    start = RunStart(data=CheckedData(classes=CLASSES, train_images=7, val_images=3))
    start.record(tracker)

    assert tracker.kept == {"dropped_boxes": 0}
    assert start.describe() == "7 training images, 3 validation images"


@contextmanager
def _no_ray(**_: object) -> Iterator[RaySession]:
    yield RaySession(address="127.0.0.1:1", dashboard=None, cpus=4, gpus=0, local=True)


@pytest.fixture
def spoilt_run(quick_run: RunConfig, tmp_path: Path) -> RunConfig:
    """Starts from a dense model, and has one flat box."""
    data = json.loads(Path(quick_run.data.train_annotations).read_text())
    data["annotations"][0]["bbox"][2] = 0
    (tmp_path / "train.json").write_text(json.dumps(data))
    classes = check_data(quick_run).classes
    dense = with_classes(override(quick_run, {"model.keep_ratio": 1.0}), classes)
    save_model(tmp_path / "dense", initial_model(dense, classes)[0])
    changes = {"data.train_annotations": str(tmp_path / "train.json"), "training.init_model": str(tmp_path / "dense")}
    return override(quick_run, changes)


def test_the_verb_train_says_what_was_loaded_and_left_out(
    spoilt_run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.train import command as verbs
    from pipelines.train import run as train

    def fitted(config: RunConfig, output: Location, *_: object) -> tuple[list[dict[str, float]], str]:
        output.child("checkpoints/epoch_0001/x").write_bytes(b"")
        return [{"epoch": 1.0, "train_seconds": 1.0, "images_per_second": 2.0}], "epoch_0001"

    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(verbs, "ray_session", _no_ray)
    monkeypatch.setattr(train, "require_cluster", lambda *_: None)
    monkeypatch.setattr(train, "fit", fitted)
    monkeypatch.setattr(train, "publish_model", lambda output, best: output.child("model"))

    assert verbs.train_command(spoilt_run) == 0
    out, err = capsys.readouterr()
    assert "Boxes left out: 1\n" in err
    assert "train.json: " in err
    assert "has no area" in err
    assert f"Starting weights: {spoilt_run.training.init_model}: " in err
    assert "(scoring_network" in err
    assert "(scoring_network" in out

    again = override(spoilt_run, {"existing": "resume"})
    assert verbs.train_command(again) == 0
    out, err = capsys.readouterr()
    assert "tarting weights" not in out + err, "it goes on from its checkpoint"


def test_the_verb_sweep_says_what_was_left_out(
    spoilt_run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tune import command as verb
    from tune import sweep
    from tune.report import SweepResult, TrialResult

    class Tuner:
        def fit(self) -> None:
            return None

    params = {"keep_ratio": 0.1, "encoder_auxiliary_weight": 1.0}
    trial = TrialResult(id="t1", params=params, metrics={"ap": 0.5, "ap50": 0.7})
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(verb, "ray_session", _no_ray)
    monkeypatch.setattr(sweep, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(sweep, "_tuner", lambda *_: Tuner())
    monkeypatch.setattr(sweep, "collect", lambda _: SweepResult(trials=(trial,)))

    assert verb.sweep_command(sweep.SweepConfig(run=spoilt_run)) == 0
    err = capsys.readouterr().err
    assert "Boxes left out: 1\n" in err
    assert "has no area" in err
