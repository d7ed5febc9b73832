"""Parts of a run in an Iceberg and in a Delta table on the S3 server: once, whatever happens, and as they are."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from pipelines.detect.rows import SCHEMA
from pipelines.predict import run
from pipelines.predict.config import PredictConfig
from pipelines.predict.parts import Part, Stamp, write_part
from pipelines.predict.run import predict
from pipelines.predict.tables import release as release_module
from pipelines.predict.tables.choose import commit, require_same_table
from pipelines.predict.tables.delta import DeltaFolder
from pipelines.predict.tables.iceberg import IcebergTable
from pipelines.predict.tables.release import Release, Table
from pipelines.services.s3_server import LocalS3
from sparse_detr.errors import ConfigError, OutputExistsError, StorageError
from sparse_detr.storage.location import Location, locate

STAMP = Stamp(fingerprint="f" * 16, manifest="m" * 16)
DELTA_OPTIONS = {"aws_allow_http": "true"}
KILLED = """
import os, signal, sys
from deltalake import DeltaTable
from pyiceberg.catalog.rest import RestCatalog
from pipelines.predict.parts import Stamp
from pipelines.predict.resume import done_parts
from pipelines.predict.tables.choose import commit
from pipelines.predict.tables.delta import DeltaFolder
from pipelines.predict.tables.iceberg import IcebergTable
from pipelines.predict.tables.release import Release
from sparse_detr.storage.location import locate

moment, output, name = sys.argv[1], locate(sys.argv[2]), sys.argv[3]

def dying(work):
    def wrapped(*arguments, **named):
        if moment == "after":
            work(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return wrapped

RestCatalog.commit_table = dying(RestCatalog.commit_table)
DeltaTable.create_write_transaction = dying(DeltaTable.create_write_transaction)
stamp = Stamp(fingerprint="f" * 16, manifest="m" * 16)
table = IcebergTable(name=name, catalog="weed") if name else DeltaFolder.of(output.parent(), output.child("detections"))
commit(table, Release(output=output, stamp=stamp, parts=done_parts(output, stamp)))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A table of some kind, with other means to read it."""

    table: Callable[[Location], Table]
    """For an output."""
    name: str
    """Of an Iceberg table; empty for a Delta one, which is in the folder above the output."""
    base: Location
    handle: Callable[[], Any]
    """The library's own view of the table."""

    def keys(self) -> list[str]:
        return sorted(self.read().column("key").to_pylist())

    def read(self) -> pa.Table:
        table = self.handle()
        rows = table.scan().to_arrow() if self.name else table.to_pyarrow_table()
        assert rows.schema.names == SCHEMA.names
        return rows


@pytest.fixture(scope="module")
def catalog(s3: LocalS3) -> Iterator[None]:
    """SeaweedFS's own Iceberg catalog, as pyiceberg's configuration `weed`."""
    # The module's tests may be run in two groups, and the fixture twice, on one server.
    try:
        boto3.client("s3tables", endpoint_url=s3.endpoint).create_table_bucket(name="tables")
    except ClientError as error:
        if error.response["Error"]["Code"] != "BucketAlreadyExists":
            raise
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "TYPE": "rest", "URI": s3.catalog, "WAREHOUSE": "s3://tables",
            "OAUTH2_SERVER_URI": f"{s3.catalog}/v1/oauth/tokens",
            "CREDENTIAL": f"{s3.access_key}:{s3.secret_key}",
        }.items():  # fmt: skip
            assert value is not None
            patch.setenv(f"PYICEBERG_CATALOG__WEED__{name}", value)
        yield


@pytest.fixture(params=["iceberg", "delta"])
def case(request: pytest.FixtureRequest, catalog: None, store: Location) -> Case:
    if request.param == "iceberg":
        name = f"tests.t{uuid.uuid4().hex[:8]}"
        table = IcebergTable(name=name, catalog="weed")
        return Case(table=lambda _: table, name=name, base=store, handle=lambda: table._catalog().load_table(name))

    def handle() -> Any:
        from deltalake import DeltaTable

        return DeltaTable(store.uri, storage_options=DELTA_OPTIONS)

    return Case(
        table=lambda output: DeltaFolder.of(store, output.child("detections")), name="", base=store, handle=handle
    )


def rows(first: int, count: int, *, failed: Sequence[int] = (), label: str = "disc") -> pa.Table:
    found = {"label": 1, "category_id": 2, "name": label, "score": 0.5, "box": [1.0, 2.0, 3.0, 4.0]}
    error = {"stage": "fetch", "type": "OSError", "message": "gone"}
    return pa.Table.from_pylist(
        [
            {
                "uri": f"s3://images/{row}.jpg", "key": f"{row:03d}", "image_id": None, "height": 6, "width": 5,
                "detections": [] if row in failed else [found], "error": error if row in failed else None,
                "fingerprint": STAMP.fingerprint,
            }
            for row in range(first, first + count)
        ],
        schema=SCHEMA,
    )  # fmt: skip


def written(output: Location, *tables: pa.Table) -> Release:
    parts: list[Part] = []
    for table in tables:
        parts.append(write_part(output, int(table.column("key")[0].as_py()), table, STAMP))
    return Release(output=output, stamp=STAMP, parts=parts)


def three(output: Location, **options: Any) -> Release:
    return written(output, *(rows(first, 10, **options) for first in (0, 10, 20)))


KEYS = [f"{row:03d}" for row in range(30)]


def test_the_parts_are_in_the_table_once_and_as_they_were(case: Case) -> None:
    release = three(case.base.child("run"), failed=[4])
    before = {name: release.folder.child(name).read_bytes() for name in release.folder.list()}
    table = case.table(release.output)
    table.check()
    first = commit(table, release)
    assert first is not None
    assert (first.parts, first.digest) == (3, release.digest)
    found = case.read().sort_by("key")
    assert found.column("key").to_pylist() == KEYS
    assert found.cast(SCHEMA).equals(pa.concat_tables([rows(first, 10, failed=[4]) for first in (0, 10, 20)]))
    assert commit(table, release) == first
    table.check()
    assert case.keys() == KEYS
    assert {name: release.folder.child(name).read_bytes() for name in before} == before
    handle = case.handle()
    notes = handle.current_snapshot().summary.additional_properties if case.name else handle.history(1)[0]
    assert {name: notes[name] for name in release.properties()} == release.properties()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_commit_that_is_killed_is_made_once(case: Case, moment: str, tmp_path: Path) -> None:
    release = three(case.base.child("run"))
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), moment, release.output.uri, case.name]
    for _ in range(2 if moment == "before" else 1):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -9, done.stderr
    there = case.keys()
    assert there == ([] if moment == "before" else KEYS)
    commit(case.table(release.output), release)
    assert case.keys() == KEYS


@pytest.mark.parametrize("again", [False, True], ids=["first", "replaced"])
def test_of_several_commits_at_once_one_counts(case: Case, again: bool) -> None:
    release = three(case.base.child("run"))
    if again:
        commit(case.table(release.output), release)
        release = three(release.output, label="star")
    barrier = threading.Barrier(4)

    def work(_: int) -> object:
        barrier.wait()
        return commit(case.table(release.output), release)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(4)))
    assert {result.digest for result in results if result is not None} == {release.digest}  # type: ignore[attr-defined]
    assert case.keys() == KEYS


def test_parts_that_changed_replace_what_the_table_had(case: Case) -> None:
    release = three(case.base.child("run"), failed=[12])
    commit(case.table(release.output), release)
    fresh = written(release.output, rows(10, 10, label="star"))
    commit(case.table(release.output), replace(release, parts=[release.parts[0], *fresh.parts, release.parts[2]]))
    found = case.read()
    assert sorted(found.column("key").to_pylist()) == KEYS
    assert found.column("error").null_count == 30
    names = {row["key"]: row["detections"][0]["name"] for row in found.to_pylist()}
    assert {key for key, name in names.items() if name == "star"} == set(KEYS[10:20])
    # An output that was overwritten: other parts, and back again.
    for name in release.folder.list():
        release.folder.child(name).delete_file()
    whole = written(release.output, rows(0, 25))
    commit(case.table(release.output), whole)
    assert case.keys() == KEYS[:25]
    commit(case.table(release.output), three(release.output))
    assert case.keys() == KEYS


def test_several_runs_share_a_table(case: Case) -> None:
    one, other = three(case.base.child("one")), written(case.base.child("other"), rows(30, 10))
    for release in (one, other, one):
        commit(case.table(release.output), release)
    assert case.keys() == [f"{row:03d}" for row in range(40)]
    commit(case.table(other.output), written(other.output, rows(30, 10, label="star")))
    assert case.keys() == [f"{row:03d}" for row in range(40)]


def test_parts_that_maintenance_rewrote_are_not_added_again(case: Case) -> None:
    release = three(case.base.child("run"))
    table = case.table(release.output)
    commit(table, release)
    if case.name:
        case.handle().overwrite(case.read())
        assert not [task for task in case.handle().scan().plan_files() if "part-00000" in task.file.file_path]
    else:
        case.handle().optimize.compact()
    commit(table, release)
    assert case.keys() == KEYS
    with pytest.raises(StorageError, match=r"0 of the 3 parts that were committed are left"):
        commit(table, three(release.output, label="star"))
    assert case.keys() == KEYS


def test_a_table_of_something_else_is_refused(case: Case) -> None:
    release = three(case.base.child("run"))
    schema = pa.schema([("key", pa.string())])
    if case.name:
        catalog = IcebergTable(name=case.name, catalog="weed")._catalog()
        catalog.create_namespace_if_not_exists("tests")
        catalog.create_table(case.name, schema=schema)
    else:
        from deltalake import DeltaTable

        DeltaTable.create(case.base.uri, schema, storage_options=DELTA_OPTIONS)
    with pytest.raises(ConfigError, match=r"it lacks uri, image_id"):
        case.table(release.output).check()
    with pytest.raises((ConfigError, StorageError), match="columns"):
        commit(case.table(release.output), release)


def test_an_output_stays_with_its_table(case: Case) -> None:
    release = three(case.base.child("run"))
    table = case.table(release.output)
    require_same_table(release.output, table)
    commit(table, release)
    require_same_table(release.output, table)
    for other in (None, IcebergTable(name="tests.other", catalog="weed")):
        with pytest.raises(OutputExistsError, match=r"are in a table already \(format (iceberg|delta)"):
            require_same_table(release.output, other)


def test_parts_with_columns_that_were_carried_along(case: Case) -> None:
    release = three(case.base.child("plain"))
    commit(case.table(release.output), release)
    wide = rows(30, 5).append_column("camera", pa.array(["north"] * 5))
    with pytest.raises((ConfigError, StorageError), match="columns"):
        commit(case.table(case.base.child("wide")), written(case.base.child("wide"), wide))
    assert case.keys() == KEYS


@pytest.mark.parametrize("kind", ["iceberg", "delta"])
def test_a_folder_of_this_machine(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name holds what a URI would escape."""
    release = three(locate(tmp_path / "a run, 50% + more"))
    if kind == "iceberg":
        monkeypatch.setenv("PYICEBERG_CATALOG__LOCAL__TYPE", "sql")
        monkeypatch.setenv("PYICEBERG_CATALOG__LOCAL__URI", f"sqlite:///{tmp_path}/catalog.db")
        monkeypatch.setenv("PYICEBERG_CATALOG__LOCAL__WAREHOUSE", f"file://{tmp_path}/warehouse")
        iceberg = IcebergTable(name="tests.local", catalog="local")
        iceberg.check()
        commit(iceberg, release)
        commit(iceberg, release)
        found = iceberg._catalog().load_table("tests.local").scan().to_arrow()
    else:
        from deltalake import DeltaTable

        for root in (release.folder, locate(tmp_path)):
            delta = DeltaFolder.of(root, release.folder)
            delta.check()
            commit(delta, release)
            commit(delta, release)
            found = DeltaTable(root.path).to_pyarrow_table()
            assert sorted(found.column("key").to_pylist()) == KEYS
            assert len(DeltaTable(root.path).to_pandas()) == 30
            dataset = DeltaTable(root.path).to_pyarrow_dataset()
            assert duckdb.from_arrow(dataset).aggregate("count(*)").fetchall() == [(30,)]
    assert sorted(found.column("key").to_pylist()) == KEYS


@pytest.mark.parametrize(("module", "kind"), [("pyiceberg", "iceberg"), ("deltalake", "delta")])
def test_a_library_that_is_not_installed(
    module: str, kind: str, store: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    table: Table = (
        IcebergTable(name="a.b", catalog="c") if kind == "iceberg" else DeltaFolder.of(store, store.child("detections"))
    )
    with pytest.raises(ConfigError, match=rf"pip install 'sparse-detr\[{kind}\]'"):
        table.check()


def test_a_catalog_that_is_unknown_away_silent_or_closed_to_us(
    catalog: None, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It reads the environment at its import too, which must not be the spoilt one of below.
    importlib.import_module("pyiceberg.catalog")
    started = time.monotonic()
    with pytest.raises(ConfigError, match="PYICEBERG_CATALOG__NOWHERE__URI"):
        IcebergTable(name="a.b", catalog="nowhere").check()
    secret = "not-the-secret-of-anybody"
    monkeypatch.setenv("PYICEBERG_CATALOG__WEED__CREDENTIAL", f"{s3.access_key}:{secret}")
    with pytest.raises(StorageError, match="catalog weed") as refused:
        IcebergTable(name="a.b", catalog="weed").check()
    monkeypatch.delenv("PYICEBERG_CATALOG__WEED__CREDENTIAL")
    monkeypatch.setenv("PYICEBERG_CATALOG__WEED__URI", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="catalog weed") as away:
        IcebergTable(name="a.b", catalog="weed").check()
    for error in (refused, away):
        assert secret not in str(error.value)
        assert s3.access_key not in str(error.value)
    assert time.monotonic() - started < 15
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PYICEBERG_CATALOG__WEED__URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(release_module, "ACCESS_DEADLINE", 1.0)
        with pytest.raises(StorageError, match="no answer in 1 s"):
            IcebergTable(name="a.b", catalog="weed").check()


def test_a_delta_table_holds_its_files() -> None:
    parts = locate("s3://bucket/run/detections")
    assert DeltaFolder.of(parts, parts).folder == ""
    assert DeltaFolder.of(locate("s3://bucket"), parts).folder == "run/detections/"
    for root in ("s3://other", "s3://bucket/ru", "/bucket"):
        with pytest.raises(ConfigError, match="table_uri"):
            DeltaFolder.of(locate(root), parts)


@pytest.mark.parametrize("kind", ["iceberg", "delta"])
def test_a_run_with_a_table(
    kind: str,
    catalog: None,
    ray_cluster: object,
    model_folder: str,
    tmp_path: Path,
    store: Location,
    make_picture: Callable[[int, int, int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(6):
        (images / f"{seed}.jpg").write_bytes(make_picture(seed, 64, 64))
    (images / "6.jpg").write_bytes(b"")
    name = f"tests.t{uuid.uuid4().hex[:8]}" if kind == "iceberg" else None
    config = PredictConfig(
        model=model_folder, images=str(images), output=store.uri, short_side=64, max_side=64, workers=1,
        images_per_block=3, error_budget="100%", score_threshold=0.0, table=kind, table_name=name, catalog="weed",
    )  # fmt: skip

    def read() -> pa.Table:
        if name:
            return IcebergTable(name=name, catalog="weed")._catalog().load_table(name).scan().to_arrow()
        from deltalake import DeltaTable

        return DeltaTable(store.child("detections").uri, storage_options=DELTA_OPTIONS).to_pyarrow_table()

    # Dies between the commit and `_SUCCESS.json`.
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_success", lambda *_: pytest.fail("died"))
        with pytest.raises(pytest.fail.Exception, match="died"):
            predict(replace(config, existing="overwrite"))
    assert not store.child("_SUCCESS.json").exists()
    result = predict(config)
    assert result.table is not None
    assert (result.table.format, result.table.parts) == (kind, 3)
    assert read().num_rows == 7
    assert json.loads(store.child("_SUCCESS.json").read_bytes())["table"]["version"] == result.table.version
    assert predict(config).table == result.table
    with pytest.raises(OutputExistsError, match="in a table already"):
        predict(replace(config, table=None, table_name=None, retry_errors=True))
    (images / "6.jpg").write_bytes(make_picture(6, 64, 64))
    again = predict(replace(config, retry_errors=True))
    assert again.table is not None
    assert again.table.version != result.table.version
    found = read()
    assert (found.num_rows, found.column("error").null_count, again.errors) == (7, 7, 0)
