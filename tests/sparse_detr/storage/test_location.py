"""storage.py on a real local folder and on a real S3 server."""

from __future__ import annotations

import os
import pickle
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from pipelines.services.s3_server import LocalS3
from sparse_detr.errors import StorageError, StoreRefusedError, StoreUnavailableError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.s3 import explained

DEADLINE = 15.0
SECRET = "a-secret-nobody-may-see"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return locate(tmp_path / "root")
    store: Location = request.getfixturevalue("store")
    return store


def test_round_trip(root: Location) -> None:
    assert not root.exists()
    root.child("a", "b.bin").write_bytes(b"one")
    root.child("a/b.bin").write_bytes(b"other")
    root.child("c.txt").write_bytes(b"")
    assert root.child("a/b.bin").read_bytes() == b"other"
    assert root.child("c.txt").read_bytes() == b""
    assert (root.is_dir(), root.child("c.txt").is_dir()) == (True, False)
    assert root.list() == ["a", "c.txt"]
    assert root.list(recursive=True) == ["a/b.bin", "c.txt"]
    with root.child("a/b.bin").open_input() as stream:
        stream.seek(2)
        assert stream.read() == b"her"


@pytest.mark.parametrize("name", ["a b.jpg", "x?y&z=1.jpg", "100%.jpg", "50%20.jpg", "é漢.jpg", "#1+2.jpg"])
def test_names_are_taken_literally(root: Location, name: str) -> None:
    root.child(name).write_bytes(name.encode())
    assert root.list() == [name]
    assert locate(root.child(name).uri).read_bytes() == name.encode()


def test_objects_are_where_another_client_finds_them(store: Location, s3: LocalS3) -> None:
    data = os.urandom(12 << 20)  # more than one part of an upload
    store.child("big").write_bytes(data)
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    assert client.get_object(Bucket="tests", Key=store.child("big").path.removeprefix("tests/"))["Body"].read() == data
    client.put_object(Bucket="tests", Key=store.child("from/boto").path.removeprefix("tests/"), Body=b"hello")
    assert store.child("from/boto").read_bytes() == b"hello"


def test_delete(root: Location) -> None:
    root.child("keep").write_bytes(b"1")
    root.child("d/e/f").write_bytes(b"1")
    root.child("d").delete_dir()
    root.child("d").delete_dir()
    root.child("nothing").delete_file()
    assert root.list(recursive=True) == ["keep"]
    root.child("keep").delete_file()
    assert root.list(recursive=True) == []


@pytest.mark.parametrize("path", ["s3://tests", "s3://tests/", "/", "file:///"])
def test_a_whole_store_is_never_deleted(s3: LocalS3, path: str) -> None:
    with pytest.raises(StorageError, match="name a folder in it"):
        locate(path).delete_dir()


def test_trees_travel(root: Location, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    wanted = {f"{'deep/er/' * (i % 3)}{i}.bin": os.urandom(1000 + i) for i in range(40)}
    for name, data in wanted.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    root.copy_tree_from(source, last="0.bin")
    root.download_to(back)
    assert {p.relative_to(back).as_posix(): p.read_bytes() for p in back.rglob("*") if p.is_file()} == wanted
    root.child("3.bin").download_to(tmp_path / "not" / "there" / "one")
    assert (tmp_path / "not" / "there" / "one").read_bytes() == root.child("3.bin").read_bytes()


def test_the_last_file_of_a_tree_says_that_the_rest_is_there(root: Location, tmp_path: Path) -> None:
    for name in ("a", "b", "manifest"):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_bytes(b"new")
        root.child(name).write_bytes(b"old")
    (tmp_path / "source" / "b").unlink()
    (tmp_path / "source" / "b").symlink_to("/proc/self/mem")  # a file that cannot be read: the copy fails half-way
    with pytest.raises(StorageError, match="source/b: cannot be used"):
        root.copy_tree_from(tmp_path / "source", last="manifest")
    assert not root.child("manifest").exists()


def test_an_empty_folder_is_not_copied(root: Location, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no files to copy"):
        root.copy_tree_from(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_children_stay_inside(root: Location, name: str) -> None:
    with pytest.raises(StorageError, match="leads out"):
        root.child(name)


class _StoreWithAnEvilKey(Location):
    """S3 itself allows this key; SeaweedFS refuses to store it."""

    def list(self, recursive: bool = False) -> list[str]:
        return ["a/../../evil"]


def test_an_object_key_cannot_leave_the_download_folder(tmp_path: Path) -> None:
    (tmp_path / "store" / "a").mkdir(parents=True)
    honest = locate(tmp_path / "store")
    (tmp_path / "evil").write_bytes(b"x")
    evil = _StoreWithAnEvilKey(filesystem=honest.filesystem, path=honest.path, uri=honest.uri)
    with pytest.raises(StorageError, match="leads out"):
        evil.download_to(tmp_path / "one" / "two")
    assert not (tmp_path / "one").exists()


def test_missing_files(root: Location) -> None:
    calls: list[Callable[[], object]] = [
        root.child("no").read_bytes,
        root.child("no").open_input,
        root.child("no").list,
        lambda: root.child("no").download_to(Path("/nonexistent/never")),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=r"no such file.*check the name"):
            call()


def test_a_local_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """A full disk, played by a limit on file size in a process of its own: the old content stays, no debris."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    code = f"from sparse_detr.storage.location import locate; locate({str(target)!r}).write_bytes(bytes(1 << 20))"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert "StorageError" in done.stderr
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_new_files_have_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "by-hand").write_bytes(b"")
    locate(tmp_path / "ours").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "by-hand").stat().st_mode


def test_forms_of_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for form in ("a b", Path("a b"), tmp_path / "a b", (tmp_path / "a b").as_uri(), f"file:{tmp_path}/a%20b", "~/a b"):
        assert locate(form).path == str(tmp_path / "a b")
        assert locate(form).read_bytes() == b"1"


@pytest.mark.parametrize("uri", ["", " ", "file:", "s3://", "s3:///key", "gs://bucket/key", "http://host/x"])
def test_refused_forms(uri: str) -> None:
    with pytest.raises(StorageError, match="give s3://bucket/key"):
        locate(uri)


@pytest.mark.parametrize("uri", [f"s3://key:{SECRET}@bucket/x", f"s3://bucket/x?access_key=k&secret_key={SECRET}"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StorageError, match="set AWS_") as caught:
        locate(uri)
    assert SECRET not in str(caught.value)


def test_a_location_carries_no_secret(store: Location, s3: LocalS3) -> None:
    store.child("x").write_bytes(b"1")
    pickled = pickle.dumps(store)
    for text in (pickled, repr(store).encode(), repr(s3).encode()):
        assert s3.secret_key.encode() not in text
    assert pickle.loads(pickled).list() == ["x"]


# ---- a store that cannot be used: an error within 15 seconds, without secrets ----


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never answers."""
    held: list[socket.socket] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        server.settimeout(0.1)
        done = threading.Event()

        def take() -> None:
            while not done.is_set():
                try:
                    held.append(server.accept()[0])
                except TimeoutError:
                    continue

        thread = threading.Thread(target=take)
        thread.start()
        yield server.getsockname()[1]
        done.set()
        thread.join()
    for each in held:
        each.close()


def refused(uri: str, match: str, *, writable: bool = False) -> None:
    begin = time.monotonic()
    with pytest.raises(StorageError, match=match) as caught:
        check_access(locate(uri), writable=writable)
    assert time.monotonic() - begin < DEADLINE
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in repr(caught.value)


@pytest.mark.parametrize("key", ["", "/some/prefix"])
@pytest.mark.parametrize("writable", [False, True])
def test_no_such_bucket(s3: LocalS3, key: str, writable: bool) -> None:
    refused(f"s3://no-such-bucket{key}", r"bucket 'no-such-bucket' does not exist at http://127", writable=writable)


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
@pytest.mark.parametrize("uri", ["s3://tests", "s3://tests/prefix", "s3://no-such-bucket/x"])
def test_wrong_credentials(s3: LocalS3, monkeypatch: pytest.MonkeyPatch, variable: str, uri: str) -> None:
    monkeypatch.setenv(variable, SECRET)
    refused(uri, "refuses the credentials; check AWS_ACCESS_KEY_ID")


def test_no_credentials(s3: LocalS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(StorageError, match="refuses the credentials"):
        check_access(locate("s3://tests/x"))
    assert time.monotonic() - begin < DEADLINE


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid:9000", "https://127.0.0.1:9"])
def test_nothing_listens(s3: LocalS3, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    refused("s3://tests/x", f"nothing answers at {address}; check AWS_ENDPOINT_URL")


def test_a_silent_server(s3: LocalS3, monkeypatch: pytest.MonkeyPatch, silent_port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent_port}")
    refused("s3://tests/x", f"at http://127.0.0.1:{silent_port}", writable=True)


@pytest.mark.parametrize("address", ["127.0.0.1:9000", "ftp://host", f"http://user:{SECRET}@host:1", "http://"])
def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL: is not an address") as caught:
        locate("s3://tests/x")
    assert SECRET not in str(caught.value)


def test_access_is_given(root: Location) -> None:
    check_access(root)
    check_access(root.child("deep/er"), writable=True)
    assert not root.exists(), "what was not there is not there afterwards"
    root.child("a").write_bytes(b"")
    check_access(root.child("deep/er"), writable=True)
    check_access(root, writable=True)
    assert root.list(recursive=True) == root.list() == ["a"]


def test_what_another_writes_while_access_is_checked_stays(store: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    team, listed = store.child("team"), Location.list

    def overtaken(self: Location, recursive: bool = False) -> list[str]:
        names = listed(self, recursive)
        if self.path == team.path:
            monkeypatch.setattr(Location, "list", listed)
            team.child("run2", "file").create(b"of another")
        return names

    monkeypatch.setattr(Location, "list", overtaken)
    check_access(team.child("run1"), writable=True)
    assert Location.list is listed, "nobody wrote between listing and deletion"
    assert store.list(recursive=True) == ["team/run2/file"]
    assert team.child("run2", "file").read_bytes() == b"of another"


def test_a_folder_that_may_not_be_written() -> None:
    with pytest.raises(StorageError, match="/proc/no-such"):
        check_access(locate("/proc/no-such"), writable=True)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    for make in (lambda: locate(f"{tmp_path}/b\udcff.json"), lambda: locate(tmp_path).child("b\udcff.json")):
        with pytest.raises(StorageError) as caught:
            make()
        assert str(caught.value) == f"{tmp_path}/b\\xff.json: the name is not UTF-8; rename it"


def test_a_folder_with_a_name_that_is_not_utf8_is_listed(tmp_path: Path) -> None:
    (tmp_path / "b\udcff").mkdir()
    (tmp_path / "b\udcff" / "x").touch()
    (tmp_path / "a").touch()
    folder = locate(tmp_path)
    assert folder.list() == ["a", "b\\xff"]
    assert folder.list(recursive=True) == ["a", "b\\xff/x"]
    with pytest.raises(StorageError, match="no such file or folder"):
        folder.child("b\\xff", "x").read_bytes()


AWAY = "When reading information for key {key!r} in bucket 'b': AWS Error SLOW_DOWN during HeadObject operation: (503)"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(AWAY), StoreUnavailableError),
        (OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28"), StoreUnavailableError),
        (OSError("AWS Error UNKNOWN (HTTP status 500) during GetObject operation"), StoreUnavailableError),
        (OSError("AWS Error ACCESS_DENIED during GetObject operation: (503) SLOW_DOWN"), StorageError),
        (OSError("AWS Error EXPIRED_TOKEN during GetObject operation"), StoreRefusedError),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"), StoreRefusedError),
        (FileNotFoundError("[Errno 2] Path does not exist 'b/{key}'"), StorageError),
        (PermissionError("AWS Error (503)"), StorageError),
    ],
)
@pytest.mark.parametrize("key", ["a.jpg", "photo (503).jpg", "SIGNATURES/ACCESS_DENIED/x.jpg", "SLOW_DOWN (429)/x.jpg"])
def test_the_store_s_words_decide_what_passes_and_never_the_name_of_a_file(
    key: str, error: OSError, kind: type[StorageError]
) -> None:
    told = type(error)(str(error).replace("{key!r}", repr(key)).replace("{key}", key))
    with pytest.raises(StorageError) as caught, explained(f"s3://b/{key}"):
        raise told
    assert type(caught.value) is kind


def test_nothing_local_passes_by_itself() -> None:
    with pytest.raises(StorageError) as caught, explained("/a/photo (512).jpg"):
        raise OSError("cannot read /a/photo (512).jpg: connection reset by peer (503)")
    assert type(caught.value) is StorageError
