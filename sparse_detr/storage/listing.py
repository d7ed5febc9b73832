"""Listing of a large collection: names, sizes and ETags of all files below a folder, several prefixes at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from sparse_detr.storage.location import Location, file_etag
from sparse_detr.storage.retry import patiently
from sparse_detr.storage.s3 import explained, listed_page, s3_client

LISTERS = 16
"""Prefixes at a time. A page of 1000 names takes 50 to 200 ms, so one alone lists ten million in half an hour."""


@dataclass(slots=True, kw_only=True)
class Listing:
    """Columns of equal length, one entry a file."""

    names: list[str] = field(default_factory=list)
    """Relative to the folder. Bytes that are not UTF-8 are written as `\\xff`; such a file cannot be opened by name."""
    sizes: list[int] = field(default_factory=list)
    """Bytes."""
    etags: list[str] = field(default_factory=list)

    def add(self, name: str, size: int, etag: str) -> None:
        """One more file."""
        self.names.append(name)
        self.sizes.append(size)
        self.etags.append(etag)


Wanted = Callable[[str], bool]


def list_files(folder: Location, wanted: Wanted = lambda name: True) -> Listing:
    """All files below a folder whose name is wanted, in no order; each once, also where symbolic links make loops.

    Raises:
        StorageError: the folder cannot be listed.
        StoreUnavailableError: the store was away for longer than `retry.PATIENCE`.
    """
    return _local(folder, wanted) if folder.is_local else _stored(folder, wanted)


def _local(folder: Location, wanted: Wanted) -> Listing:
    found = Listing()
    seen: set[tuple[int, int]] = set()
    start = len(os.fsencode(folder.path.rstrip("/"))) + 1
    with explained(folder.uri):
        pending = [os.fsencode(folder.path)]
        while pending:
            path = pending.pop()
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir():
                        pending.append(entry.path)
                        continue
                    name = entry.path[start:].decode("utf-8", "backslashreplace")
                    if wanted(name):
                        found.add(name, *_size_and_etag(entry))
    return found


def _size_and_etag(entry: os.DirEntry[bytes]) -> tuple[int, str]:
    try:
        status = entry.stat()
    except OSError:
        # A link to nothing, or a file that went meanwhile: reading it will say so.
        return 0, ""
    return status.st_size, file_etag(status)


def _stored(folder: Location, wanted: Wanted) -> Listing:
    """A prefix is listed level by level, and every common prefix by a thread of its own."""
    bucket, _, key = folder.path.partition("/")
    root = f"{key}/" if key else ""
    found, client = Listing(), s3_client()

    def pages(prefix: str) -> tuple[list[dict[str, Any]], list[str]]:
        contents: list[dict[str, Any]] = []
        prefixes: list[str] = []
        token: str | None = None
        while True:
            page = patiently(listed_page, client, bucket, prefix, token, folder.uri)
            contents += page.contents
            prefixes += page.prefixes
            token = page.token
            if token is None:
                return contents, prefixes

    with ThreadPoolExecutor(LISTERS, thread_name_prefix="list") as pool:
        running: set[Future[tuple[list[dict[str, Any]], list[str]]]] = {pool.submit(pages, root)}
        try:
            for contents, prefixes in _as_completed(running):
                running.update(pool.submit(pages, prefix) for prefix in prefixes)
                for item in contents:
                    name = item["Key"][len(root) :]
                    # A name that ends in a slash is what some tools leave for an empty folder.
                    if name and not name.endswith("/") and wanted(name):
                        found.add(name, item["Size"], item["ETag"])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _as_completed(running: set[Future[Any]]) -> Iterator[Any]:
    """Results of a set that grows while it is read."""
    while running:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        running -= done
        for future in done:
            yield future.result()
