from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cluster.session import ray_session
from pipelines.detect.manifest import Manifest
from pipelines.detect.pool import plan_pool
from pipelines.detect.predictor import PredictorFactory
from pipelines.detect.rows import SCHEMA
from pipelines.detect.workers import Work, stream
from pipelines.predict.config import PredictConfig
from pipelines.predict.parts import ParquetSink, Stamp, read_detections
from pipelines.predict.resume import plan_tasks
from pipelines.predict.run import predict
from pipelines.predict.stored_manifest import StoredBlocks, write_manifest
from pipelines.services.s3_server import LocalS3
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import (
    CheckpointError,
    ConfigError,
    ErrorBudgetError,
    OutputExistsError,
    StorageError,
    StoreRefusedError,
)
from sparse_detr.records import ImageSize
from sparse_detr.storage.location import Location, locate
from sparse_detr.weights.model_folder import save_model
from tests.faulty_store import faulty_store

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
        error_budget="100%",
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


def test_a_store_that_refuses_the_first_request_for_everything_ends_no_run(
    finished: PredictConfig, s3: LocalS3, collection: Path, model_folder: str, store: Location,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By 429, which pyarrow's client does not repeat of itself: each read of the driver and the workers once."""
    store.child("images").copy_tree_from(collection)
    store.child("model").copy_tree_from(Path(model_folder))
    changes = {name: store.child(name).uri for name in ("images", "model")} | {"output": store.child("out").uri}
    with faulty_store(s3.endpoint) as proxy, monkeypatch.context() as patch:
        proxy.first = "429"
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        result = predict(replace(finished, **changes))  # type: ignore[arg-type]
        assert proxy.failed["429"] >= result.images
    here, there = _rows(finished.output), _rows(store.child("out").uri)
    assert _found(there) == _found(here)
    stages = [{key: row["error"]["stage"] for key, row in rows.items() if row["error"]} for rows in (here, there)]
    assert stages[0] == stages[1]


def test_same_detections_however_the_work_is_cut(finished: PredictConfig, tmp_path: Path) -> None:
    predict(replace(finished, output=str(tmp_path), images_per_block=64, workers=1, batch_size=3))
    here, there = _found(_rows(finished.output)), _found(_rows(str(tmp_path)))
    assert set(here) == set(there)
    for key, (height, width, boxes) in here.items():
        other = there[key]
        assert (height, width) == (other[0], other[1])
        _assert_same_boxes(boxes, other[2])


def test_a_measured_batch_size_is_kept_by_a_run_that_goes_on(finished: PredictConfig, tmp_path: Path) -> None:
    config = replace(finished, output=str(tmp_path / "out"), batch_size="auto")
    first = predict(config)
    record = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert first.batch_size == record["batch_size"] in (1, 2, 4)  # not above the images of a block
    found = _found(_rows(config.output))
    # As if another machine had begun it: 3 is no size that is ever tried.
    (tmp_path / "out" / "_run.json").write_text(json.dumps({**record, "batch_size": 3}))
    (tmp_path / "out" / "_SUCCESS.json").unlink()
    next((tmp_path / "out" / "detections").glob("*.parquet")).unlink()
    assert predict(config).batch_size == 3
    again = _found(_rows(config.output))
    for key, (height, width, boxes) in found.items():
        assert (height, width) == (again[key][0], again[key][1])
        _assert_same_boxes(boxes, again[key][2])


def _assert_same_boxes(boxes: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """The same but for rounding, as in batches of other sizes."""
    for one, two in zip(boxes, others, strict=True):
        assert one["label"] == two["label"]
        assert one["score"] == pytest.approx(two["score"], abs=1e-5)
        np.testing.assert_allclose(one["box"], two["box"], atol=1e-2)


def test_output_of_another_run_is_refused_unless_told(
    finished: PredictConfig, tmp_path: Path, collection: Path
) -> None:
    with pytest.raises(OutputExistsError, match="finished results"):
        predict(replace(finished, existing="refuse"))
    first = json.loads((Path(finished.output) / "_run.json").read_text())["fingerprint"]
    other = replace(finished, keep_ratio=0.9)
    with pytest.raises(OutputExistsError, match=r"keep_ratio: 0\.3, now 0\.9"):
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


@pytest.mark.parametrize("budget", ["2", "15%"])
def test_too_many_errors_stop_the_run_and_a_larger_budget_goes_on(
    finished: PredictConfig, tmp_path: Path, budget: str
) -> None:
    config = replace(finished, output=str(tmp_path / "out"), images_per_block=2, workers=1, error_budget=budget)
    expected = rf"error_budget: {budget} is exceeded, .*: [345] of the \d+ images of this session failed \(16 in all\)"
    with pytest.raises(ErrorBudgetError, match=expected) as caught:
        predict(config)
    assert ".jpg: " in str(caught.value)
    before = _rows(config.output)
    assert sum(row["error"] is not None for row in before.values()) >= 3
    assert not (tmp_path / "out" / "_SUCCESS.json").exists()
    result = predict(replace(config, error_budget="100%"))
    assert result.done_before == len(before)
    assert result.images == 16
    after = _rows(config.output)
    assert {key: after[key] for key in before} == before
    assert _found(after).keys() == _found(_rows(finished.output)).keys()


def test_the_same_command_again_says_that_all_is_done(finished: PredictConfig) -> None:
    files = sorted(Path(finished.output).rglob("*.parquet"))
    times = [file.stat().st_mtime_ns for file in files]

    def no_ray() -> Any:
        raise AssertionError("nothing is left to do")

    result = predict(finished, connect=no_ray)
    assert (result.images, result.done_before, result.errors) == (16, 16, 4)
    assert [file.stat().st_mtime_ns for file in files] == times


def test_every_part_is_named_with_rows_size_and_hash(finished: PredictConfig) -> None:
    folder = Path(finished.output)
    success = json.loads((folder / "_SUCCESS.json").read_text())
    assert [part["name"] for part in success["parts"]] == sorted(
        file.name for file in (folder / "detections").iterdir()
    )
    for part in success["parts"]:
        data = (folder / "detections" / part["name"]).read_bytes()
        assert (part["size"], part["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert part["rows"] == pq.read_metadata(pa.BufferReader(data)).num_rows
    errors = pq.read_table(folder / "errors.parquet").to_pylist()
    assert {row["key"] for row in errors} == {row["key"] for row in _rows(finished.output).values() if row["error"]}
    manifest = pq.read_table(folder / "_manifest.parquet").to_pylist()
    assert [row["key"] for row in manifest] == sorted(_rows(finished.output))
    assert all(row["size"] == (Path(finished.images) / row["key"]).stat().st_size for row in manifest)


def test_errors_are_done_again_when_asked_and_only_they(
    finished: PredictConfig, collection: Path, sound: dict[str, bytes], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(collection, images)
    config = replace(finished, images=str(images), output=str(tmp_path / "out"))
    assert predict(config).errors == 4
    before = _rows(config.output)
    (images / "text.jpg").write_bytes(sound["00.jpg"])
    assert predict(config).errors == 4, "a finished run is finished"
    result = predict(replace(config, retry_errors=True))
    after = _rows(config.output)
    assert (result.errors, result.images) == (3, 16)
    assert after["text.jpg"]["error"] is None
    _assert_same_boxes(after["text.jpg"]["detections"], after["00.jpg"]["detections"])
    assert {k: v for k, v in after.items() if k != "text.jpg"} == {k: v for k, v in before.items() if k != "text.jpg"}
    assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 3


def test_what_changed_or_went_after_the_listing_is_an_error_row(
    finished: PredictConfig, collection: Path, sound: dict[str, bytes], tmp_path: Path, store: Location
) -> None:
    for name, data in sound.items():
        store.child("images", name).write_bytes(data)
    config = replace(finished, images=store.child("images").uri, output=store.child("out").uri, error_budget="100%")

    class Changes:
        """A Ray that comes up while somebody else works on the images."""

        def __enter__(self) -> Any:
            store.child("images", "00.jpg").write_bytes(sound["01.jpg"])
            store.child("images", "02.jpg").delete_file()
            self.session = ray_session()
            return self.session.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.session.__exit__(*error)

    predict(config, connect=Changes)
    rows = _rows(config.output)
    failed = {key: row["error"] for key, row in rows.items() if row["error"]}
    assert failed.keys() == {"00.jpg", "02.jpg"}
    assert all(error["stage"] == "fetch" for error in failed.values())
    assert "changed after it was listed" in failed["00.jpg"]["message"]


def test_a_list_of_the_user_s_own_keeps_order_and_columns(
    finished: PredictConfig, collection: Path, tmp_path: Path
) -> None:
    names = ["03.jpg", "00.jpg", "missing.jpg", "03.jpg"]
    table = pa.table({"where": [str(collection / name) for name in names], "camera": [4, 3, 2, 1]})
    pq.write_table(table, tmp_path / "list.parquet")
    config = replace(finished, images=str(tmp_path / "list.parquet"), uri_column="where", output=str(tmp_path / "out"))
    assert predict(replace(config, error_budget="100%")).images == 4
    rows = pa.concat_tables(read_detections(locate(config.output))).to_pylist()
    assert [row["uri"] for row in rows] == table.column("where").to_pylist()
    assert [row["camera"] for row in rows] == [4, 3, 2, 1]
    assert rows[2]["error"]["stage"] == "fetch"
    for place, name in ((0, "03.jpg"), (1, "00.jpg"), (3, "03.jpg")):
        expected = _rows(finished.output)[name]["detections"]
        assert [found["label"] for found in rows[place]["detections"]] == [found["label"] for found in expected]
    with pytest.raises(ConfigError, match=r"uri_column: .* has no column 'uri', but where, camera"):
        predict(replace(config, uri_column="uri", output=str(tmp_path / "other")))


@pytest.mark.parametrize(("choice", "count"), [({"limit": 3}, 3), ({"sample": 5}, 5), ({"sample": 99}, 16)])
def test_a_part_of_the_collection(finished: PredictConfig, tmp_path: Path, choice: dict[str, int], count: int) -> None:
    config = replace(finished, output=str(tmp_path / "out"), error_budget="100%", **choice)
    assert predict(config).images == count
    rows, all_rows = _rows(config.output), _rows(finished.output)
    assert len(rows) == count
    assert rows.keys() <= all_rows.keys()
    if "limit" in choice:
        assert sorted(rows) == sorted(all_rows)[:3]


def _work(config: PredictConfig, keys: list[str], output: str, folder: Path) -> tuple[Work, list[pa.Table]]:
    """The work on these images, whose manifest is in a folder; the tasks are in order."""
    manifest = write_manifest(locate(folder), Manifest.of(config.images, keys))
    stamp = Stamp(fingerprint="f", manifest=manifest)
    work = Work(
        config=config,
        predictor=PredictorFactory(config=config),
        root=config.images,
        fingerprint="f",
        sink=ParquetSink(output=output, stamp=stamp),
        source=StoredBlocks(output=str(folder), stamp=stamp),
    )
    tasks = plan_tasks([], len(keys), config.images_per_block)
    return work, sorted(tasks, key=lambda task: task.column("first")[0].as_py())


@pytest.mark.parametrize(
    ("sink", "other_model", "kind"),
    [("s3://no-such-place/out", None, StoreRefusedError), ("/tmp", "/no-such-place/model", CheckpointError)],
)
def test_what_a_worker_finds_wrong_reaches_the_user_in_its_own_words(
    finished: PredictConfig, s3: LocalS3, sink: str, other_model: str | None, kind: type[Exception], tmp_path: Path
) -> None:
    """An output that it cannot write, and a model that is on another machine's disk alone."""
    config = replace(finished, model=other_model or finished.model)
    work, tasks = _work(config, ["00.jpg"], sink, tmp_path)
    with ray_session() as session, pytest.raises(kind, match="no-such-place") as caught:
        list(stream(tasks, work, plan_pool(config, session, len(tasks))))
    assert type(caught.value) is kind
    assert "Traceback" not in str(caught.value)


def test_a_block_that_cannot_be_written_stops_the_run(finished: PredictConfig, tmp_path: Path) -> None:
    """The others are written; a folder stands where this one's file would go."""
    (tmp_path / "detections" / "part-0000000002-0000000003.parquet" / "full").mkdir(parents=True)
    config = replace(finished, images_per_block=2, workers=1)
    work, tasks = _work(config, ["00.jpg", "01.jpg", "02.jpg", "03.jpg"], str(tmp_path), tmp_path)
    with ray_session() as session, pytest.raises(StorageError, match="part-0000000002"):
        list(stream(tasks, work, plan_pool(config, session, len(tasks))))
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
    assert not (tmp_path / "out" / "detections").exists()


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


def _quoted(language: str) -> str:
    text = (Path(__file__).parents[3] / "docs" / "inference.md").read_text()
    return next(block for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if "runs/found" in block)


def test_the_queries_of_the_docs_work(
    finished: PredictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import duckdb

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "found").symlink_to(finished.output)
    monkeypatch.chdir(tmp_path)
    labels = Counter(box["name"] for row in _rows(finished.output).values() for box in row["detections"])
    found = duckdb.sql(_quoted("sql")).fetchall()
    assert {name: boxes for name, boxes, _ in found} == dict(labels)
    exec(_quoted("python"), {})
    assert "decode" in capsys.readouterr().out
