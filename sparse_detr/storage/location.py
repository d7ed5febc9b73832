"""One place that turns `s3://bucket/key`, `file:` URIs and plain paths into a pyarrow filesystem.

Credentials come from the usual AWS environment alone (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_SESSION_TOKEN`, a profile, or the role of the machine), the server from `AWS_ENDPOINT_URL_S3` or
`AWS_ENDPOINT_URL`, the region from `AWS_REGION` or `AWS_DEFAULT_REGION`. They are never part of a URI,
so a Location can be logged, pickled to a worker and stored in a config.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from sparse_detr.errors import StorageError
from sparse_detr.storage.s3 import (
    create_object,
    explained,
    s3_filesystem,
    upload_file,
)

_CHUNK = 4 << 20
_TRANSFERS = 8
"""Files at a time: one request to a store takes tens of milliseconds, most of them waiting."""
_URI_OPTIONS = {"access_key", "secret_key", "session_token", "endpoint_override", "region", "scheme"}

Names = list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A file or folder in some store. Every method raises StorageError with the URI and a remedy."""

    filesystem: fs.FileSystem
    """Pickles without secrets: every process takes its own from its environment."""
    path: str
    """As the filesystem wants it: absolute for local files, `bucket/key` for S3."""
    uri: str
    """Text that `locate` turns into this location again."""

    def __post_init__(self) -> None:
        try:
            self.path.encode()
        except UnicodeEncodeError:
            # Python keeps byte ff of such a name as the character udcff.
            shown = self.uri.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")
            raise StorageError(f"{shown}: the name is not UTF-8; rename it") from None

    @property
    def is_local(self) -> bool:
        """True for files of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def child(self, *names: str) -> Location:
        """The location below this one. Names may hold `/`, but may not lead out of this folder."""
        parts = [part for name in names for part in name.split("/")]
        if ".." in parts or any(name.startswith("/") for name in names):
            raise StorageError(f"{self.uri}: {'/'.join(names)!r} leads out of it; give a name relative to it")
        tail = "".join(f"/{part}" for part in parts if part not in ("", "."))
        return replace(self, path=self.path.rstrip("/") + tail, uri=self.uri.rstrip("/") + tail)

    def parent(self) -> Location:
        """The folder that this is in; a bucket and the root folder are their own."""
        above = self.path.rstrip("/").rpartition("/")[0]
        if self.is_local:
            above = above or "/"
            return replace(self, path=above, uri=above)
        return replace(self, path=above, uri=f"s3://{above}") if above else self

    def exists(self) -> bool:
        """Whether a file or folder (S3: any object below this prefix) is there."""
        return bool(self._info().type != fs.FileType.NotFound)

    def is_dir(self) -> bool:
        """Whether this is a folder (S3: a prefix of some object)."""
        return bool(self._info().type == fs.FileType.Directory)

    def list(self, recursive: bool = False) -> Names:
        """Names below this folder, relative to it, sorted: files and folders, or all files when recursive.

        A name that is not UTF-8 has `\\xff` for such a byte. So it is seen, but reading it is an error.
        """
        with explained(self.uri):
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=recursive))
        start = len(self.path.rstrip("/")) + 1
        return sorted(_path(i)[start:] for i in found if not recursive or i.type == fs.FileType.File)

    def read_bytes(self) -> bytes:
        """The whole file."""
        with explained(self.uri), self.filesystem.open_input_stream(self.path, compression=None) as stream:
            return bytes(stream.read())

    def read_with_etag(self) -> tuple[bytes, str]:
        """The whole file, and what tells this content from another: the store's ETag, or size and time of a file."""
        with explained(self.uri), self.filesystem.open_input_stream(self.path, compression=None) as stream:
            data = bytes(stream.read())
            if self.is_local:
                return data, file_etag(os.stat(self.path))
            return data, (stream.metadata() or {}).get("ETag", b"").decode()

    def open_input(self) -> pa.NativeFile:
        """The file, open for reading with seek; the caller closes it. Its reads raise OSError."""
        with explained(self.uri):
            return self.filesystem.open_input_file(self.path)

    def write_bytes(self, data: bytes) -> None:
        """Write the file whole or not at all: a reader sees the old content, or all of the new one."""
        with explained(self.uri):
            if self.is_local:
                return _replace_file(Path(self.path), lambda stream: stream.write(data))
            # pyarrow completes an upload even when its stream is closed by an exception. So the data goes in
            # one call, in a thread: Ctrl-C, which is raised in the main one, cannot come between open and close.
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(self._put, data).result()

    def write_file(self, source: Path) -> None:
        """Write the content of a local file, of any length, whole or not at all."""
        with explained(self.uri):
            if self.is_local:
                with source.open("rb") as stream:
                    _replace_file(Path(self.path), lambda sink: shutil.copyfileobj(stream, sink, _CHUNK))
                return
        bucket, _, key = self.path.partition("/")
        upload_file(source, bucket, key, self.uri)

    def create(self, data: bytes) -> bool:
        """Write the file whole, only if there is none; of several that try at once, one gets True.

        Raises:
            StorageError: the store cannot be written to, or knows no conditional writes.
        """
        if not self.is_local:
            bucket, _, key = self.path.partition("/")
            return create_object(bucket, key, data, self.uri)
        with explained(self.uri):
            target = Path(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}.part")
            try:
                part.write_bytes(data)
                # A link appears with all of its content, and only where no file is: on NFS too, unlike O_EXCL.
                os.link(part, target)
            except FileExistsError:
                return False
            finally:
                part.unlink(missing_ok=True)
        return True

    def delete_file(self) -> None:
        """Delete this file; nothing happens when it is absent."""
        with explained(self.uri), suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path)

    def delete_dir(self) -> None:
        """Delete this folder with all that is in it; nothing happens when it is absent."""
        if "/" not in self.path.strip("/"):
            raise StorageError(f"{self.uri}: will not delete a whole bucket or a root folder; name a folder in it")
        with explained(self.uri):
            if self.exists():
                self.filesystem.delete_dir(self.path)

    def copy_tree_from(self, folder: Path, *, last: str | None = None) -> None:
        """Copy every file below a local folder to this location, files in parallel.

        Args:
            folder: a local folder with at least one file.
            last: relative name of a file that is removed first and written last, so that its presence says
                that everything else is there (a manifest).
        """
        names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
        if not names:
            raise StorageError(f"{folder}: no files to copy to {self.uri}; give a folder with files")
        if last is not None:
            self.child(last).delete_file()
        _each([name for name in names if name != last], lambda name: self.child(name)._upload(folder / name))
        if last in names:
            self.child(last)._upload(folder / last)

    def download_to(self, target: Path) -> None:
        """Copy this file, or every file below this folder, to a local path; each file whole or not at all."""
        if not self.is_dir():
            return self._download(target)
        # child() refuses object keys such as `a/../../b`, which would be written outside of the target.
        pairs = [(self.child(name), target / name) for name in self.list(recursive=True)]
        target.mkdir(parents=True, exist_ok=True)
        return _each(pairs, lambda pair: pair[0]._download(pair[1]))

    def _info(self) -> fs.FileInfo:
        with explained(self.uri):
            return self.filesystem.get_file_info(self.path)

    def _put(self, data: bytes) -> None:
        with self.filesystem.open_output_stream(self.path, compression=None) as stream:
            stream.write(data)

    def _upload(self, source: Path) -> None:
        with explained(str(source)):
            data = source.read_bytes()
        self.write_bytes(data)

    def _download(self, target: Path) -> None:
        def fill(sink: Any) -> None:
            while chunk := stream.read(_CHUNK):
                sink.write(chunk)

        with explained(self.uri), self.filesystem.open_input_stream(self.path, compression=None) as stream:
            _replace_file(target, fill)


def file_etag(status: os.stat_result) -> str:
    """Mark of a local file's content, as an object store's ETag: it changes when the file is written."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def locate(path_or_uri: str | Path, *, s3: fs.S3FileSystem | None = None) -> Location:
    """The location that a plain path, a `file:` URI or an `s3://bucket/key` URI names. Touches no network.

    Args:
        path_or_uri: names the location.
        s3: a client to use for the store, where many locations are made; by default each gets its own.

    Raises:
        StorageError: an empty or unknown form, no bucket, or credentials or options inside the URI.
    """
    text = str(path_or_uri)
    if isinstance(path_or_uri, str):
        if text.startswith("s3://"):
            return _locate_s3(text.removeprefix("s3://"), s3)
        if text.startswith("file:"):
            text = unquote(urlsplit(text).path)
        elif "://" in text:
            scheme = text.partition(":")[0]
            raise StorageError(f"path: {scheme}:// is not a store we know; give s3://bucket/key, file:/path or a path")
    if not text.strip():
        raise StorageError("path: it is empty; give s3://bucket/key, file:/path or a path")
    path = os.path.abspath(os.path.expanduser(text))
    return Location(filesystem=fs.LocalFileSystem(), path=path, uri=path)


def _locate_s3(rest: str, s3: fs.S3FileSystem | None) -> Location:
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise StorageError("path: s3:// names no bucket; give s3://bucket/key")
    # The text itself is not shown: what stands before an @ is likely to be a secret.
    if "@" in bucket or ":" in bucket:
        raise StorageError("path: the S3 URI holds credentials or a host; give s3://bucket/key and set AWS_* variables")
    options = {part.partition("=")[0] for part in rest.partition("?")[2].split("&")} & _URI_OPTIONS
    if options:
        raise StorageError(f"path: the S3 URI has the options {sorted(options)}; set AWS_* variables instead")
    path = "/".join([bucket, *(part for part in key.split("/") if part)])
    return Location(filesystem=s3 or s3_filesystem(), path=path, uri=f"s3://{path}")


def _path(info: fs.FileInfo) -> str:
    try:
        return str(info.path)
    except UnicodeDecodeError as error:
        return error.object.decode(errors="backslashreplace")


def _replace_file(target: Path, fill: Callable[[Any], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _each(items: Sequence[Any], work: Callable[[Any], None]) -> None:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        try:
            for _ in pool.map(work, items):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
