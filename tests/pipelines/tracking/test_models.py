"""Models in MLflow, read back with MLflow's own functions; artifacts beside a sqlite file and behind a real server."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from PIL import Image

from pipelines.detect.config import PredictorConfig
from pipelines.detect.predictor import Predictor
from pipelines.services.mlflow_server import local_mlflow
from pipelines.services.s3_server import LocalS3
from pipelines.tracking import model_uri
from pipelines.tracking.model_uri import pinned
from pipelines.tracking.tracker import Registration, Tracker
from pipelines.tracking.training_run import open_run
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError, StoreUnavailableError
from sparse_detr.storage.location import Location, locate
from sparse_detr.weights.model_folder import save_model


@pytest.fixture
def tracker(mlflow_uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    return open_run(None, "tests", request.node.name)


def _registration(name: str, ap: float | None = 0.5, data: str = "val-1") -> Registration:
    return Registration(name=name, alias="best", ap=ap, data=data)


def _weights(uri: str) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in SparseDetr.from_pretrained(uri).state_dict().items()}


def test_every_name_of_a_model_leads_to_its_folder(tracker: Tracker, model_folder: str) -> None:
    first = tracker.model(model_folder, _registration("cells"))
    assert first == "models:/cells/1"
    assert not tracker.failures
    expected = _weights(model_folder)
    for uri in ("models:/cells@best", "models:/cells/1", "models:/cells/latest", f"runs:/{tracker.run_id}/model"):
        place = _folder(uri)
        assert Path(place, "manifest.json").is_file()
        found = _weights(place)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected), uri
    assert _folder(model_folder) == model_folder
    assert _folder("s3://bucket/model") == "s3://bucket/model"


def _folder(uri: str) -> str:
    return model_uri.model_folder(uri)


def test_an_alias_is_the_version_that_it_means_now(tracker: Tracker, model_folder: str, mlflow_uri: str) -> None:
    tracker.model(model_folder, _registration("moving"))
    assert pinned("models:/moving@best") == "models:/moving/1"
    assert open_run(mlflow_uri, "tests", "second").model(model_folder, _registration("moving")) == "models:/moving/2"
    assert pinned("models:/moving@best") == pinned("models:/moving/latest") == "models:/moving/2"
    for uri in ("models:/moving/1", "runs:/abc/model", "/a/path", "s3://bucket/models:/x@y"):
        assert pinned(uri) == uri


def test_the_alias_stays_with_the_better_model_of_the_same_data(
    model_folder: str, mlflow_uri: str, tracker: Tracker
) -> None:
    def publish(ap: float | None, data: str) -> str:
        registered = open_run(mlflow_uri, "tests", "x").model(model_folder, _registration("judged", ap, data))
        assert registered is not None
        return f"{registered.rpartition('/')[2]} -> {pinned('models:/judged@best').rpartition('/')[2]}"

    assert publish(0.5, "val-1") == "1 -> 1"
    assert publish(0.4, "val-1") == "2 -> 1"
    assert publish(None, "val-1") == "3 -> 1"
    assert publish(0.5, "val-1") == "4 -> 4"
    assert publish(0.1, "val-2") == "5 -> 5"


def test_a_run_that_ends_twice_registers_once(tracker: Tracker, model_folder: str) -> None:
    assert tracker.model(model_folder, _registration("twice")) == "models:/twice/1"
    assert tracker.model(model_folder, _registration("twice")) == "models:/twice/1"


def test_a_version_keeps_its_weights_when_its_run_goes_on(tracker: Tracker, model_folder: str, tmp_path: Path) -> None:
    other = SparseDetr.from_pretrained(model_folder)
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    save_model(str(tmp_path / "other"), other)
    assert tracker.model(model_folder, _registration("kept")) == "models:/kept/1"
    assert tracker.model(tmp_path / "other", _registration("kept")) == "models:/kept/2"
    first, second = _weights(_folder("models:/kept/1")), _weights(_folder("models:/kept/2"))
    expected = _weights(model_folder)
    assert all(np.array_equal(first[name], expected[name]) for name in expected)
    assert not all(np.array_equal(first[name], second[name]) for name in expected)


def test_a_registry_that_fails_moves_no_alias(
    tracker: Tracker, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.model(model_folder, _registration("steady", ap=0.9))

    def busy(self: MlflowClient, name: str, alias: str) -> None:
        raise MlflowException("try later", error_code=TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_model_version_by_alias", busy)
        assert open_run(tracker.uri, "tests", "x").model(model_folder, _registration("steady", ap=0.1)) is None
        with pytest.raises(StoreUnavailableError, match="cannot be asked"):
            _folder("models:/steady@best")
    assert pinned("models:/steady@best") == "models:/steady/1"


def test_a_database_that_is_not_there_is_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///absent/mlflow.db")
    with pytest.raises(CheckpointError, match=f"sqlite:///{tmp_path}/absent/mlflow.db is not there"):
        _folder("models:/cells@best")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/no-such-model@best", "not known to MLflow at sqlite"),
        ("models:/no-such-model/3", "not known to MLflow at sqlite"),
        ("models:/no-such-model/latest", "not known to MLflow at sqlite"),
        ("runs:/00000000000000000000000000000000/model", "not known to MLflow at sqlite"),
    ],
)
def test_what_is_not_there_is_said(tracker: Tracker, uri: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _folder(uri)


def test_a_model_of_something_else_is_said(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    tracker.artifact(tmp_path, "model")
    with pytest.raises(CheckpointError, match="holds no model folder of sparse-detr"):
        _folder(f"runs:/{tracker.run_id}/model")


@pytest.mark.parametrize("uri", ["models:/@best", "models:/x@", "models:/", "runs:/abc"])
def test_other_forms_are_refused(tracker: Tracker, uri: str) -> None:
    with pytest.raises(ConfigError, match="give models:/name@alias"):
        _folder(uri)


def test_without_mlflow_such_a_name_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        _folder("models:/cells@best")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1:9 cannot be asked"):
        _folder("models:/cells@best")


# ---- the model as MLflow loads it ----

SCORE = """
import json, sys
import mlflow.pyfunc, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
files = [open(name, "rb").read() for name in sys.argv[2:]]
table = model.predict(pd.DataFrame({"image": files}), params={"score_threshold": 0.0, "max_detections": 3})
example = model.predict(model.input_example)
print(json.dumps([table.to_dict("list"), len(example)]))
"""


def _score(uri: str, files: list[Path], tracking_uri: str, folder: Path) -> tuple[dict[str, list[object]], int]:
    """In a fresh process, far from the sources."""
    done = subprocess.run(
        [sys.executable, "-c", SCORE, uri, *map(str, files)], cwd=folder, capture_output=True, text=True, check=False,
        env=_environment(tracking_uri), timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    table, example = json.loads(done.stdout.splitlines()[-1])
    return table, example


def _environment(tracking_uri: str) -> dict[str, str]:
    return {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, sound: dict[str, bytes]) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    files = [folder / name for name in sorted(sound)[:3]]
    for file in files:
        file.write_bytes(sound[file.name])
    (folder / "text.jpg").write_bytes(b"no image")
    return [*files, folder / "text.jpg"]


def _assert_scored_as_here(table: dict[str, list[object]], pictures: list[Path], folder: str) -> None:
    model = SparseDetr.from_pretrained(folder)
    assert model.classes is not None
    here = Predictor(model, PredictorConfig(max_detections=3))([file.read_bytes() for file in pictures])
    for row, result in enumerate(here[:-1]):
        assert result.detections is not None
        assert table["labels"][row] == [model.classes.names[label] for label in result.detections.labels.tolist()]
        np.testing.assert_allclose(table["scores"][row], result.detections.scores, atol=1e-6)  # type: ignore[arg-type]
        np.testing.assert_allclose(table["boxes"][row], result.detections.boxes, atol=1e-3)  # type: ignore[arg-type]
        assert table["error"][row] == ""
    assert table["labels"][-1] == []
    assert "not an image that can be read" in str(table["error"][-1])


@pytest.mark.slow
def test_a_fresh_process_scores_it(
    tracker: Tracker, mlflow_uri: str, model_folder: str, pictures: list[Path], tmp_path: Path
) -> None:
    tracker.model(model_folder, _registration("scored"))
    table, example = _score("models:/scored@best", pictures, mlflow_uri, tmp_path)
    _assert_scored_as_here(table, pictures, model_folder)
    assert example == 1


def test_parameters_and_columns_that_are_wrong_are_named(tracker: Tracker, model_folder: str) -> None:
    from pipelines.detect.served import ServedDetector

    served = ServedDetector(SparseDetr.from_pretrained(model_folder))
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    with pytest.raises(ConfigError, match=r"image: no such column, there are \['picture'\]"):
        served.predict(pd.DataFrame({"picture": [file.getvalue()]}))
    with pytest.raises(ConfigError, match=r"keep_ratio: 2\.0"):
        served.predict(pd.DataFrame({"image": [file.getvalue()]}), {"keep_ratio": 2.0})
    found = served.predict(pd.DataFrame({"image": [file.getvalue()]}, index=[7]), {"score_threshold": 0.0})
    assert list(found.index) == [7]
    assert len(found.loc[7, "scores"]) == len(found.loc[7, "boxes"]) > 0


# ---- behind a server, with artifacts in S3 ----


@pytest.fixture(scope="module")
def server(s3: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server whose clients reach artifacts through it alone."""
    s3.create_bucket("mlflow")
    environment = {**s3.environment(), "MLFLOW_S3_ENDPOINT_URL": s3.endpoint}
    with local_mlflow(tmp_path_factory.mktemp("server"), "s3://mlflow/artifacts", environment) as running:
        yield running.uri


@pytest.mark.slow
def test_artifacts_behind_a_server_are_fetched_once(
    server: str, model_folder: str, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    tracker = open_run(None, "tests", "served")
    assert tracker.model(model_folder, _registration("served")) == "models:/served/1", tracker.failures
    assert any("model.safetensors" in name for name in locate("s3://mlflow/artifacts").list(recursive=True))
    place = _folder("models:/served@best")
    assert place.startswith(str(tmp_path / "cache"))
    expected = _weights(model_folder)
    assert all(np.array_equal(value, expected[name]) for name, value in _weights(place).items())
    written = Path(place, "model.safetensors").stat().st_mtime_ns
    assert _folder("models:/served/1") == place
    assert Path(place, "model.safetensors").stat().st_mtime_ns == written
    # Beside it nothing is left of the download.
    assert len(list((tmp_path / "cache" / "sparse-detr" / "models").iterdir())) == 1
    model_uri._folder.cache_clear()
    assert _folder(f"runs:/{tracker.run_id}/model") == place, "the same model by another name"
    table, _ = _score("models:/served@best", pictures, server, tmp_path)
    _assert_scored_as_here(table, pictures, model_folder)


def test_a_store_that_this_process_reaches_is_read_where_it_is(
    mlflow_uri: str, store: Location, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    experiment = MlflowClient(mlflow_uri).create_experiment(f"in {store.uri}", artifact_location=store.uri)
    assert experiment
    tracker = open_run(mlflow_uri, f"in {store.uri}", "x")
    assert tracker.model(model_folder, _registration("stored")) == "models:/stored/1", tracker.failures
    place = _folder("models:/stored@best")
    assert place.startswith(f"{store.uri}/")
    assert _weights(place).keys() == _weights(model_folder).keys()


def test_a_model_that_cannot_be_logged_is_counted(tracker: Tracker, tmp_path: Path) -> None:
    assert tracker.model(tmp_path / "gone", _registration("gone")) is None
    assert tracker.failures == {"model": 1}
