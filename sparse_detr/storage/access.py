"""Whether a location can be used, found out within seconds, before any work."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import replace

from sparse_detr.errors import StorageError
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently
from sparse_detr.storage.s3 import answered, at_endpoint, delete_folder_marker, s3_filesystem

ACCESS_DEADLINE = 12.0
"""Seconds after which `check_access` gives up on a store that says nothing. Commands promise an error within 15; 3 are
left for what comes before."""

_BUSY_SECONDS = 2.0
"""For which `check_access` repeats a request to a busy store: one that was refused is no reason to end a job."""


def check_access(location: Location, *, writable: bool = False) -> None:
    """Find out within 15 seconds whether a location can be used; it need not exist yet, but its bucket must.

    Args:
        location: a file or folder.
        writable: also write a small object and delete it again: below it, or where it is a local folder that is absent,
            in the nearest one above. No folder is left that was not there.

    Raises:
        StorageError: no such bucket, credentials refused, nothing answers; never with a secret in it.
    """
    quick = location if location.is_local else replace(location, filesystem=s3_filesystem(patient=False))
    trial = f".access-{secrets.token_hex(8)}" if writable else None
    answered(ACCESS_DEADLINE, lambda: _probe(quick, trial), location.uri)


def _probe(location: Location, trial: str | None) -> None:
    """See `check_access`; `trial` names the small object, None writes none."""
    if not location.is_local and not patiently(location.exists, seconds=_BUSY_SECONDS):
        bucket = location.path.split("/")[0]
        place = replace(location, path=bucket, uri=f"s3://{bucket}")
        if not patiently(place.exists, seconds=_BUSY_SECONDS):
            raise StorageError(
                f"{location.uri}: bucket {bucket!r} does not exist{at_endpoint()}; create it or correct the name"
            )
    if trial is not None:
        absent = _absent_folders(location)
        place = absent[-1].parent() if absent and location.is_local else location
        try:
            patiently(place.child(trial).write_bytes, b"sparse-detr", seconds=_BUSY_SECONDS)
            patiently(place.child(trial).delete_file, seconds=_BUSY_SECONDS)
        except StorageError as error:
            raise type(error)(f"{location.uri}: cannot be written to; {error}") from None
        if not location.is_local:
            _remove_empty(absent)


def _absent_folders(location: Location) -> list[Location]:
    """The location and the folders above it that are not there, the deepest first."""
    absent = []
    with suppress(StorageError):  # The store may show this prefix alone.
        while not location.exists():
            absent.append(location)
            location = location.parent()
    return absent


def _remove_empty(folders: list[Location]) -> None:
    """Delete what pyarrow leaves in a store of a deleted object: its prefix as an empty folder, then the one above."""
    with suppress(StorageError):
        for folder in folders:
            if folder.exists() and not folder.list():
                bucket, _, key = folder.path.partition("/")
                # Not delete_dir, which would take along what another job writes below it at this moment.
                delete_folder_marker(bucket, key, folder.uri)
