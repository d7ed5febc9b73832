from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.tracking.mlflow_tracker import MlflowTracker
from pipelines.tracking.tracker import NullTracker, Tracker
from pipelines.tracking.training_run import open_run
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.progress import StepProgress
from pipelines.train.pictures import TrainingPictures, choose_images
from sparse_detr.boxes import cxcywh_to_xyxy


class Recorder(NullTracker):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.run_id = "a-run"
        self.sent: dict[str, bytes] = {}

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        for file in sorted(Path(path).iterdir()):
            self.sent[f"{folder}/{file.name}"] = file.read_bytes()


class Broken:
    """A client whose every call fails."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError("the server is away, secret-token")


def run(config: RunConfig, tracker: Tracker) -> list[dict[str, float]]:
    return [dict(metrics) for metrics in build_loop(config, hooks=TrainingPictures(config, tracker)).run()]


def test_the_same_images_after_every_evaluation_and_training_is_not_touched(quick_run: RunConfig) -> None:
    recorder = Recorder()
    history = run(quick_run, recorder)

    folders = {name.rpartition("/")[0] for name in recorder.sent}
    assert folders == {"explain/epoch_0001", "explain/epoch_0002"}
    files = [
        sorted(name.rpartition("/")[2] for name in recorder.sent if f"epoch_000{epoch}/" in name) for epoch in (1, 2)
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 2
    pictures = [
        np.asarray(Image.open(io.BytesIO(recorder.sent[f"explain/epoch_000{e}/{files[0][0]}"]))) for e in (1, 2)
    ]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()  # the title, and what the model sees

    plain = run(override(quick_run, {"training.explain_images": 0}), Recorder())
    for with_pictures, without in zip(history, plain, strict=True):
        assert with_pictures["loss"] == without["loss"]
        assert with_pictures["ap"] == without["ap"]


def test_nothing_is_drawn_when_off_or_untracked(quick_run: RunConfig) -> None:
    drawn: list[int] = []

    def train(tracker: Tracker, **training: int) -> None:
        changes = {f"training.{name}": value for name, value in training.items()}
        config = override(quick_run, {"training.epochs": 1} | changes)
        hooks = TrainingPictures(config, tracker, show=lambda _loop, epoch: drawn.append(epoch))
        build_loop(config, hooks=hooks).run()

    train(Recorder(), explain_images=0)
    train(NullTracker())
    assert drawn == []
    train(Recorder())
    assert drawn == [1]


@pytest.mark.parametrize("failure", ["tracking", "image"])
def test_failures_never_stop_training(quick_run: RunConfig, caplog: pytest.LogCaptureFixture, failure: str) -> None:
    tracker = MlflowTracker("http://nowhere", "a-run", Broken()) if failure == "tracking" else Recorder()  # type: ignore[arg-type]
    shown = override(quick_run, {"data.val_images": "/nowhere"}) if failure == "image" else quick_run
    with caplog.at_level(logging.WARNING):
        history = build_loop(quick_run, hooks=TrainingPictures(shown, tracker)).run()
    assert len(history) == 2
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


@pytest.mark.parametrize(
    ("epochs", "every", "drawn"),
    [
        (3, 1, [1, 2, 3]),
        (50, 1, [1, 6, 11, 16, 21, 26, 31, 36, 41, 46, 50]),
        (7, 3, [3, 6, 7]),
        (1, 5, [1]),
    ],
)
def test_about_ten_evaluations_and_the_last_are_drawn(
    quick_run: RunConfig, epochs: int, every: int, drawn: list[int]
) -> None:
    seen: list[int] = []
    config = override(quick_run, {"training.epochs": epochs, "training.evaluate_every": every})
    pictures = TrainingPictures(config, Recorder(), show=lambda _loop, epoch: seen.append(epoch))
    for epoch in range(1, epochs + 1):
        progress = StepProgress(epoch=epoch, epochs=epochs, step=epoch, steps=epochs, metrics={})
        pictures.epoch_done(None, progress)  # type: ignore[arg-type]
    assert seen == drawn


def test_images_with_several_objects_come_first_with_their_true_boxes(quick_run: RunConfig) -> None:
    data = json.loads(Path(quick_run.data.val_annotations).read_text())
    chosen = choose_images(data, quick_run.data.val_images, 3)
    by_name = {image["file_name"]: image["id"] for image in data["images"]}
    counts = {i: sum(a["image_id"] == i for a in data["annotations"]) for i in by_name.values()}
    rich = [i for i in by_name.values() if counts[i] >= 3] + [i for i in by_name.values() if counts[i] < 3]
    assert [by_name[name] for name, _, _ in chosen] == rich[:3]
    for name, pixels, truth in chosen:
        boxes = [a["bbox"] for a in data["annotations"] if a["image_id"] == by_name[name]]
        corners = cxcywh_to_xyxy(truth.boxes) * 64
        assert pixels.shape == (64, 64, 3)
        expected = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes]).reshape(-1, 4)
        np.testing.assert_allclose(corners.numpy(), expected, atol=1e-3)


def test_the_pictures_are_artifacts_of_the_run(quick_run: RunConfig, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    tracker = open_run(mlflow_uri, "pictures", "run")
    run(override(quick_run, {"training.epochs": 1, "training.explain_images": 1}), tracker)
    tracker.finish()
    client = MlflowClient(mlflow_uri)
    (folder,) = client.list_artifacts(str(tracker.run_id), "explain")
    (picture,) = client.list_artifacts(str(tracker.run_id), folder.path)
    assert picture.path.startswith("explain/epoch_0001/")
    assert picture.path.endswith(".png")
    assert tracker.failures == {}
