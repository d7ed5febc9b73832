from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cluster.session import ray_session
from pipelines.detect.manifest import Manifest
from pipelines.detect.predictor import PredictorFactory
from pipelines.detect.rows import SCHEMA
from pipelines.detect.workers import Work, plan_pool, stream
from pipelines.predict.config import PredictConfig
from pipelines.predict.parquet import ParquetSink, read_detections
from pipelines.predict.run import predict
from pipelines.services.s3_server import LocalS3
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError, ErrorBudgetError, OutputExistsError, StorageError
from sparse_detr.records import ImageSize
from sparse_detr.storage.location import Location, locate
from sparse_detr.weights.model_folder import save_model

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def config(model_folder: str, collection: Path, tmp_path_factory: pytest.TempPathFactory) -> PredictConfig:
    return PredictConfig(
        model=model_folder,
        images=str(collection),
        output=str(tmp_path_factory.mktemp("run") / "out"),
        short_side=64,
        max_side=96,
        score_threshold=0.0,
        max_detections=10,
        workers=2,
        images_per_block=5,
    )


@pytest.fixture(scope="module")
def finished(config: PredictConfig, ray_cluster: object) -> PredictConfig:
    """The collection, run once from a folder into a folder."""
    predict(config)
    return config


def _rows(output: str) -> Rows:
    rows = pa.concat_tables(read_detections(locate(output))).to_pylist()
    found = {row["key"]: row for row in rows}
    assert len(found) == len(rows), "an image has two rows"
    return found


def _found(rows: Rows) -> dict[str, Any]:
    return {key: (row["height"], row["width"], row["detections"]) for key, row in rows.items() if row["error"] is None}


def test_one_row_an_image_whatever_it_is(
    config: PredictConfig,
    ray_cluster: object,
    tmp_path: Path,
    sound: dict[str, bytes],
    broken: dict[str, bytes],
) -> None:
    names = sorted([*sound, *broken, "missing.jpg"])
    annotations = tmp_path / "list.json"
    annotations.write_text(json.dumps({"images": [{"id": i, "file_name": n} for i, n in enumerate(names)]}))
    output = tmp_path / "out"
    config = replace(config, annotations=str(annotations), output=str(output), coco_results=True)
    seen: list[tuple[int, int]] = []
    result = predict(config, on_progress=lambda done, total: seen.append((done, total)))

    rows = _rows(config.output)
    assert sorted(rows) == names
    assert {key for key, row in rows.items() if row["error"] is not None} == {*broken, "missing.jpg"}
    assert {key: row["error"]["stage"] for key, row in rows.items() if row["error"]} == {
        **dict.fromkeys(broken, "decode"),
        "missing.jpg": "fetch",
    }
    assert all(len(rows[key]["detections"]) == 10 for key in sound)
    assert all(row["image_id"] == names.index(key) for key, row in rows.items())
    assert {row["fingerprint"] for row in rows.values()} == {result.fingerprint}

    assert (result.images, result.errors, result.detections) == (len(names), 5, 10 * len(sound))
    assert {Path(row.uri).name for row in result.error_rows} == {*broken, "missing.jpg"}
    assert result.images_per_second == pytest.approx(result.images / result.seconds)
    assert seen[-1] == (len(names), len(names))
    assert seen == sorted(seen)
    assert len(seen) == 4

    record = json.loads((output / "_run.json").read_text())
    assert (record["fingerprint"], record["total"]) == (result.fingerprint, len(names))
    assert json.loads((output / "_SUCCESS.json").read_text())["errors"] == 5
    assert pq.read_table(output / "detections").schema.equals(SCHEMA)
    results = json.loads((output / "coco_results.json").read_text())
    assert len(results) == result.detections
    assert {entry["image_id"] for entry in results} == {names.index(key) for key in sound}


def test_same_detections_from_the_store(
    finished: PredictConfig, collection: Path, s3: LocalS3, model_folder: str
) -> None:
    s3.create_bucket("predict")
    locate("s3://predict/images").copy_tree_from(collection)
    locate("s3://predict/model").copy_tree_from(Path(model_folder))
    uris = {"images": "s3://predict/images", "model": "s3://predict/model", "output": "s3://predict/out"}
    result = predict(replace(finished, **uris))
    here, there = _rows(finished.output), _rows("s3://predict/out")
    assert _found(there) == _found(here)
    assert there["00.jpg"]["uri"] == "s3://predict/images/00.jpg"
    assert set(there) == set(here)
    assert result.errors == 4
    assert {row["fingerprint"] for row in here.values()} == {result.fingerprint}


def test_same_detections_however_the_work_is_cut(finished: PredictConfig, tmp_path: Path) -> None:
    predict(replace(finished, output=str(tmp_path), images_per_block=64, workers=1, batch_size=3))
    here, there = _found(_rows(finished.output)), _found(_rows(str(tmp_path)))
    assert set(here) == set(there)
    for key, (height, width, boxes) in here.items():
        other = there[key]
        assert (height, width, len(boxes)) == (other[0], other[1], len(other[2]))
        for one, two in zip(boxes, other[2], strict=True):
            assert one["label"] == two["label"]
            assert one["score"] == pytest.approx(two["score"], abs=1e-5)
            np.testing.assert_allclose(one["box"], two["box"], atol=1e-2)


def test_output_of_another_run_is_refused_unless_told(
    finished: PredictConfig, tmp_path: Path, collection: Path
) -> None:
    with pytest.raises(OutputExistsError, match="finished results"):
        predict(finished)
    first = json.loads((Path(finished.output) / "_run.json").read_text())["fingerprint"]
    other = replace(finished, keep_ratio=0.9)
    with pytest.raises(OutputExistsError, match=first):
        predict(other)
    before = _rows(finished.output)

    own = replace(other, output=str(tmp_path / "out"), images_per_block=7)
    predict(replace(own, keep_ratio=None))
    result = predict(replace(own, existing="overwrite", images_per_block=6))
    rows = _rows(own.output)
    assert set(rows) == set(before)
    assert {row["fingerprint"] for row in rows.values()} == {result.fingerprint}
    assert result.fingerprint != first
    assert len(list((tmp_path / "out" / "detections").iterdir())) == 3
    assert _found(rows) != _found(before)


@pytest.mark.parametrize("limit", [{"max_errors": 2}, {"max_error_share": 0.15}])
def test_too_many_errors_stop_the_run(finished: PredictConfig, tmp_path: Path, limit: dict[str, Any]) -> None:
    config = replace(finished, output=str(tmp_path / "out"), images_per_block=2, workers=1, **limit)
    field, value = next(iter(limit.items()))
    expected = rf"{field}: {value} is exceeded: [345] of the first \d+ images failed \(16 in all\)"
    with pytest.raises(ErrorBudgetError, match=expected) as caught:
        predict(config)
    assert ".jpg: " in str(caught.value)
    rows = _rows(config.output)
    assert sum(row["error"] is not None for row in rows.values()) >= 3
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()
    with pytest.raises(OutputExistsError, match="unfinished"):
        predict(config)


@pytest.mark.parametrize(
    ("sink", "other_model", "kind"),
    [("s3://no-such-place/out", None, StorageError), ("/tmp", "/no-such-place/model", CheckpointError)],
)
def test_what_a_worker_finds_wrong_reaches_the_user_in_its_own_words(
    finished: PredictConfig, s3: LocalS3, sink: str, other_model: str | None, kind: type[Exception]
) -> None:
    """An output that it cannot write, and a model that is on another machine's disk alone."""
    config = replace(finished, model=other_model or finished.model)
    work = Work(
        config=config,
        predictor=PredictorFactory(config=config),
        root=config.images,
        fingerprint="f",
        sink=ParquetSink(output=sink),
    )
    blocks = Manifest.of(config.images, ["00.jpg"]).blocks(1)
    with ray_session() as session, pytest.raises(kind, match="no-such-place") as caught:
        list(stream(blocks, work, plan_pool(config, session, len(blocks))))
    assert type(caught.value) is kind
    assert "Traceback" not in str(caught.value)


def test_a_block_that_cannot_be_written_stops_the_run(finished: PredictConfig, tmp_path: Path) -> None:
    """The others are written; a folder stands where this one's file would go."""
    (tmp_path / "detections" / "part-0000000002-0000000003.parquet" / "full").mkdir(parents=True)
    config = replace(finished, images_per_block=2, workers=1)
    sink = ParquetSink(output=str(tmp_path))
    work = Work(
        config=config, predictor=PredictorFactory(config=config), root=config.images, fingerprint="f", sink=sink
    )
    blocks = Manifest.of(config.images, ["00.jpg", "01.jpg", "02.jpg", "03.jpg"]).blocks(2)
    with ray_session() as session, pytest.raises(StorageError, match="part-0000000002"):
        list(stream(blocks, work, plan_pool(config, session, len(blocks))))
    assert (tmp_path / "detections" / "part-0000000000-0000000001.parquet").is_file()


@pytest.mark.parametrize("field", ["images", "output", "model"])
def test_missing_bucket_is_named_at_once(config: PredictConfig, s3: LocalS3, field: str, tmp_path: Path) -> None:
    started = time.monotonic()
    changes: dict[str, Any] = {"output": str(tmp_path / "out"), field: "s3://no-such-bucket/x"}
    with pytest.raises(StorageError, match="no-such-bucket"):
        predict(replace(config, **changes))
    assert time.monotonic() - started < 15
    assert not (tmp_path / "out" / "_run.json").exists()


def test_wrong_credentials_are_an_error_and_no_hang(
    config: PredictConfig, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        predict(replace(config, output="s3://predict/elsewhere"))
    assert time.monotonic() - started < 15
    assert "not-the-secret" not in str(caught.value)


def test_user_errors_are_found_before_any_work(config: PredictConfig, model: SparseDetr, tmp_path: Path) -> None:
    config = replace(config, output=str(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        predict(replace(config, model=str(tmp_path / "empty")))
    with pytest.raises(StorageError, match="not a folder"):
        predict(replace(config, images=str(tmp_path / "absent")))
    with pytest.raises(StorageError, match="holds no image"):
        predict(replace(config, images=str(tmp_path / "empty")))
    with pytest.raises(ConfigError, match="GPU"):
        predict(replace(config, device="gpu"))
    assert not (tmp_path / "out" / "_run.json").exists()


def test_the_models_own_image_size_decides(
    finished: PredictConfig, model: SparseDetr, sound: dict[str, bytes], tmp_path: Path
) -> None:
    """Without a size in the config: the same rows and the same fingerprint as with the model's size given."""
    own = copy.deepcopy(model)
    own.image_size = ImageSize(short_side=64, max_side=96)
    save_model(tmp_path / "model", own)
    given = replace(finished, model=str(tmp_path / "model"), output=str(tmp_path / "given"))
    results = [predict(given), predict(replace(given, output=str(tmp_path / "own"), short_side=None, max_side=None))]
    assert results[0].fingerprint == results[1].fingerprint
    assert _found(_rows(str(tmp_path / "own"))) == _found(_rows(finished.output))
    settings = json.loads((tmp_path / "own" / "_run.json").read_text())["settings"]
    assert (settings["short_side"], settings["max_side"]) == (64, 96)


def test_images_of_coco_from_folder_and_store(
    finished: PredictConfig, shared: Path, s3: LocalS3, store: Location, tmp_path: Path
) -> None:
    source = shared / "data" / "coco_tiny"
    data = json.loads((source / "annotations" / "instances_val2017.json").read_text())
    crowd = {a["image_id"] for a in data["annotations"] if a["iscrowd"]}
    data["images"] = sorted(data["images"], key=lambda image: (image["id"] not in crowd, image["id"]))[:6]
    for image in data["images"]:
        store.child("images", image["file_name"]).write_bytes(_coco_image(source, image["file_name"]))
        locate(tmp_path).child("images", image["file_name"]).write_bytes(_coco_image(source, image["file_name"]))
    for root in (store, locate(tmp_path)):
        root.child("list.json").write_bytes(json.dumps(data).encode())
        files = {name: root.child(path).uri for name, path in (("images", "images"), ("annotations", "list.json"))}
        result = predict(replace(finished, **files, output=root.child("out").uri, coco_results=True))
        assert (result.images, result.errors) == (6, 0)
    here, there = _rows(str(tmp_path / "out")), _rows(store.child("out").uri)
    assert _found(here) == _found(there)
    assert {row["image_id"] for row in here.values()} == {image["id"] for image in data["images"]}
    assert {key: (row["height"], row["width"]) for key, row in here.items()} == {
        image["file_name"]: (image["height"], image["width"]) for image in data["images"]
    }
    results = [json.loads(root.child("out/coco_results.json").read_bytes()) for root in (store, locate(tmp_path))]
    assert results[0] == results[1]
    assert len(results[0]) == result.detections > 0


def _coco_image(source: Path, name: str) -> bytes:
    return next(source.rglob(name)).read_bytes()
