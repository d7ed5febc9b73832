"""The parts of a whole run as a table is to hold them, and what all kinds of tables have in common."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol, TypeVar

import pyarrow as pa

from pipelines.detect.rows import SCHEMA
from pipelines.predict.output import DETECTIONS_FOLDER
from pipelines.predict.parts import Part, Stamp, part_rows, read_part
from sparse_detr.deadline import within
from sparse_detr.errors import ConfigError, SparseDetrError, StorageError, StoreUnavailableError
from sparse_detr.redaction import HIDDEN, without_secrets
from sparse_detr.storage.access import ACCESS_DEADLINE
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently
from sparse_detr.storage.s3 import store_error_kind

T = TypeVar("T")

_LONGEST = 600
"""Characters of another library's message; some print whole schemas."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a table holds of a run."""

    format: str
    table: str
    version: str
    """Iceberg's snapshot id, Delta's version; a text, as JSON readers round numbers of 19 digits."""
    parts: int
    digest: str
    """Of the names and hashes of the parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The parts of a run that is whole."""

    output: Location
    stamp: Stamp
    parts: Sequence[Part]
    """At least one."""

    @property
    def folder(self) -> Location:
        """The folder of the parts."""
        return self.output.child(DETECTIONS_FOLDER)

    @property
    def digest(self) -> str:
        """Identity of the content: the first 16 hexadecimal digits of a hash of the parts' names and hashes."""
        content = hashlib.sha256()
        for part in self.parts:
            content.update(f"{part.name} {part.sha256}\n".encode())
        return content.hexdigest()[:16]

    def schema(self) -> pa.Schema:
        """Columns of the parts: those of every run and the ones that were carried along."""
        first = self.parts[0]
        return patiently(read_part, self.output, first.first, first.last).schema

    def properties(self) -> Mapping[str, str]:
        """Notes on the commit, by which it is found again and people see what it is of."""
        return {
            "sparse-detr.output": self.output.uri,
            "sparse-detr.fingerprint": self.stamp.fingerprint,
            "sparse-detr.manifest": self.stamp.manifest,
            "sparse-detr.parts": str(len(self.parts)),
            "sparse-detr.digest": self.digest,
        }


class Table(Protocol):
    """A table that takes the parts of runs."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Which table it is, for the record in an output."""

    def check(self) -> None:
        """Find out within 15 seconds whether the table can be used; it need not exist yet.

        Raises:
            ConfigError: its library is not installed, or it has other columns.
            StorageError: it is out of reach.
        """

    def commit(self, release: Release) -> Committed:
        """Make the table hold exactly these parts of this output, in one transaction; at once where it does already.

        Raises:
            StorageError: it is out of reach, or what it holds of this output cannot be told any more.
        """


def is_part_of(path: str, folder: str) -> bool:
    """Whether a file that a table names is a part in this folder, whose text ends with `/` or is empty."""
    return path.startswith(folder) and part_rows(path.removeprefix(folder)) is not None


def require_installed(module: str, extra: str) -> None:
    """Raise ConfigError unless the library of a kind of table is there."""
    if find_spec(module) is None:
        raise ConfigError(
            f"table: {extra!r} needs the library {module}, which is not installed; pip install 'sparse-detr[{extra}]'"
        )


def require_columns(names: Sequence[str], table: str) -> None:
    """Raise ConfigError unless a table that is there has the columns of every run."""
    lacking = [name for name in SCHEMA.names if name not in names]
    if lacking:
        raise ConfigError(f"table: {table} is one of something else: it lacks {', '.join(lacking)}; give another name")


def require_complete(found: int, committed: int, table: str) -> None:
    """Raise StorageError unless the parts that were committed before are in the table as they were."""
    if found != committed:
        raise StorageError(
            f"table: {table}: {found} of the {committed} parts that were committed are left in it; the others were "
            "rewritten or deleted since, so they cannot be replaced; give another output and another table"
        )


def in_time(work: Callable[[], T], table: str) -> T:
    """The result of a look at a table, waited for 12 seconds."""
    try:
        return within(ACCESS_DEADLINE, work)
    except TimeoutError:
        raise StoreUnavailableError(
            f"table: {table}: no answer in {ACCESS_DEADLINE:.0f} s; check its address and the network"
        ) from None


@contextmanager
def explained(table: str, *, passing: tuple[type[Exception], ...] = (), secrets: Sequence[str] = ()) -> Iterator[None]:
    """Turn what a library raises into a StorageError; the chain is cut, as the original may quote a credential.

    Args:
        table: its name.
        passing: errors after which another try may go well.
        secrets: texts that the message may not show.
    """
    try:
        yield
    except SparseDetrError:
        raise
    # Of any class: the libraries let those of requests, botocore, SQLAlchemy and a dozen more through.
    except Exception as error:
        text = " ".join(_COLOURS.sub("", without_secrets(f"{type(error).__name__}: {error}")).split())
        for secret in secrets:
            text = text.replace(secret, HIDDEN)
        kind = StoreUnavailableError if isinstance(error, passing) else store_error_kind(text)
        raise kind(
            f"table: {table}: cannot be used ({text[:_LONGEST]}); the parts are not touched, and the same command goes "
            "on once that is remedied"
        ) from None
