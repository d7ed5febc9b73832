"""Preflight of train and sweep: what they show before the first step, what MLflow gets of it. Without Ray."""

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
from pipelines.train.command import train_command
from pipelines.train.config import TrainOptions
from pipelines.train.engine.build import with_classes
from pipelines.train.engine.initial_weights import initial_model
from pipelines.train.preflight import CheckedData, RunStart, check_data
from pipelines.train.record import Fitted
from pipelines.train.run import train
from sparse_detr.errors import ConfigError, OutputExistsError, SparseDetrError
from sparse_detr.records import Classes
from sparse_detr.storage.location import Location
from sparse_detr.weights.model_folder import save_model
from sparse_detr.weights.state import LoadReport
from tune.command import sweep_command
from tune.config import SweepConfig
from tune.report import SweepResult, TrialResult
from tune.sweep import sweep

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
    return RunStart(data=data, weights=LoadReport(source="r18.safetensors", loaded=("a", "b", "c"), fresh=fresh))


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


@contextmanager
def _never() -> Iterator[RaySession]:
    raise AssertionError("Ray was started")
    yield


def _fitted(config: RunConfig, output: Location, *_: object) -> Fitted:
    output.child("checkpoints/epoch_0001/model/manifest.json").write_bytes(b"{}")
    return Fitted(history=[{"epoch": 1.0, "train_seconds": 1.0, "images_per_second": 2.0}], best="epoch_0001")


def test_train_says_what_was_loaded_and_left_out(
    spoilt_run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")

    assert train_command(TrainOptions.of(spoilt_run), connect=_no_ray, launch=_fitted) == 0
    out, err = capsys.readouterr()
    assert "local Ray: 4 CPUs" in err
    assert "Boxes left out: 1\n" in err
    assert "train.json: " in err
    assert "has no area" in err
    assert f"Starting weights: {spoilt_run.training.init_model}: " in err
    assert "(scoring_network" in err
    assert "(scoring_network" in out

    again = override(spoilt_run, {"existing": "resume"})
    assert train_command(TrainOptions.of(again), connect=_no_ray, launch=_fitted) == 0
    out, err = capsys.readouterr()
    assert "tarting weights" not in out + err, "it goes on from its checkpoint"


def test_sweep_says_what_was_left_out(
    spoilt_run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {"keep_ratio": 0.1, "encoder_auxiliary_weight": 1.0}
    trial = TrialResult(id="t1", params=params, metrics={"ap": 0.5, "ap50": 0.7})
    monkeypatch.setenv("COLUMNS", "1000")

    found = SweepResult(trials=(trial,))
    assert sweep_command(SweepConfig(run=spoilt_run), connect=_no_ray, launch=lambda *_: found) == 0
    err = capsys.readouterr().err
    assert "Boxes left out: 1\n" in err
    assert "has no area" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.train_images": ""}, "data.train_images: not set"),
        ({"data.val_images": "/nowhere"}, "/nowhere: no such file or folder"),
        ({"training.global_batch": 99}, "training.global_batch: 99"),
        ({"training.init_model": "/nowhere"}, "/nowhere: absent, not a model folder"),
        ({"training.init_backbone": "/nowhere.pth"}, "/nowhere.pth"),
        ({"output": "/proc/run"}, "/proc/run: cannot be written to"),
        ({"registered_model": "cells", "tracking_uri": "none"}, "registered_model: 'cells' without MLflow"),
        ({"training.init_model": "models:/cells@best", "tracking_uri": "none"}, "no MLflow is named"),
    ],
)
def test_a_user_error_is_found_before_ray_starts(quick_run: RunConfig, changes: dict[str, Any], message: str) -> None:
    config = override(quick_run, changes)
    with pytest.raises(SparseDetrError, match=message):
        train(config, connect=_never)
    with pytest.raises(SparseDetrError, match=message):
        sweep(SweepConfig(run=config), connect=_never)
    assert not Path(quick_run.output).exists()


def test_validation_data_without_images_is_found_before_ray_starts(quick_run: RunConfig, tmp_path: Path) -> None:
    data = json.loads(Path(quick_run.data.val_annotations).read_text())
    (tmp_path / "val.json").write_text(json.dumps(data | {"images": [], "annotations": []}))
    config = override(quick_run, {"data.val_annotations": str(tmp_path / "val.json")})
    with pytest.raises(ConfigError, match=r"^data\.val_annotations: .*val\.json has no images"):
        train(config, connect=_never)
    assert not Path(quick_run.output).exists()


def test_an_output_of_another_run_is_found_before_ray_starts(quick_run: RunConfig) -> None:
    train(quick_run, connect=_no_ray, launch=_fitted)
    with pytest.raises(OutputExistsError, match="overwrite or resume"):
        train(quick_run, connect=_never)
    other = override(quick_run, {"existing": "resume", "optimizer.lr": 0.5})
    with pytest.raises(ConfigError, match="optimizer"):
        train(other, connect=_never)


def test_a_sweep_that_may_not_write_is_found_before_ray_starts(quick_run: RunConfig) -> None:
    Path(quick_run.output).mkdir()
    Path(quick_run.output, "sweep.json").write_text("{}")
    with pytest.raises(OutputExistsError, match=r"sweep\.json"):
        sweep(SweepConfig(run=quick_run), connect=_never)


def test_a_sweep_overwrites_neither_its_start_nor_what_no_sweep_wrote(quick_run: RunConfig) -> None:
    output = Path(quick_run.output)
    config = with_classes(override(quick_run, {"existing": "overwrite"}), check_data(quick_run).classes)
    (output / "tune").mkdir(parents=True)
    (output / "tune" / "piano.txt").write_text("of a piano tuner")
    with pytest.raises(OutputExistsError, match=r"^run\.output: .* holds tune that no run of ours wrote"):
        sweep(SweepConfig(run=config), connect=_never)
    (output / "tune" / "tuner.pkl").write_bytes(b"")
    save_model(output / "trials" / "x" / "model", initial_model(config, check_data(config).classes)[0])
    config = override(config, {"training.init_model": str(output / "trials" / "x" / "model")})
    with pytest.raises(OutputExistsError, match=r"^run\.training\.init_model: .* is in .*/trials, which run\.output"):
        sweep(SweepConfig(run=config), connect=_never)


def test_overwriting_waits_until_the_cluster_has_room(quick_run: RunConfig) -> None:
    train(quick_run, connect=_no_ray, launch=_fitted)
    large = override(quick_run, {"existing": "overwrite", "training.workers": 8})
    with pytest.raises(ConfigError, match="8 take 8 CPUs together, the cluster has 4"):
        train(large, connect=_no_ray, launch=_fitted)
    assert Path(quick_run.output, "result.json").exists()
