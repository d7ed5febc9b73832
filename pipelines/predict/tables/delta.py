"""Delta: parts are added to a log beside or above them, and an application transaction says which run they are of.

A Delta log names files relative to the folder that it is in: `s3://...` as a name is taken for a folder (deltalake
1.6.6). So the table's folder is that of the parts, or one that has it somewhere in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.predict.tables.release import (
    Committed,
    Release,
    explained,
    in_time,
    is_part_of,
    require_columns,
    require_complete,
    require_installed,
)
from sparse_detr.errors import ConfigError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently
from sparse_detr.storage.s3 import endpoint

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable
    from deltalake.transaction import AddAction, RemoveAction

_DIGITS = 15
"""Hexadecimal, of a release's digest: as many as fit into the number of an application transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaFolder:
    """A folder with a Delta log."""

    root: Location
    folder: str
    """The parts' folder in it: empty, or with a `/` at its end."""

    @classmethod
    def of(cls, root: Location, parts: Location) -> DeltaFolder:
        """The table in `root` for parts in a folder.

        Raises:
            ConfigError: that folder is not in `root`.
        """
        if root.path == parts.path:
            return cls(root=root, folder="")
        if root.is_local != parts.is_local or not parts.path.startswith(root.path.rstrip("/") + "/"):
            raise ConfigError(
                f"table_uri: {root.uri} does not hold the output's {parts.uri}; a Delta table names only files in its "
                "own folder, so give one above the output, or leave it out"
            )
        return cls(root=root, folder=parts.path[len(root.path.rstrip("/")) + 1 :] + "/")

    @property
    def identity(self) -> Mapping[str, str]:
        """The folder."""
        return {"format": "delta", "table": self.root.uri}

    def check(self) -> None:
        """As `Table.check`."""
        require_installed("deltalake", "delta")
        check_access(self.root, writable=True)
        in_time(self._look, self.root.uri)

    def commit(self, release: Release) -> Committed:
        """As `Table.commit`. Each try looks first whether the one before came through, unheard of."""
        return patiently(self._try_commit, release)

    def _look(self) -> None:
        from deltalake import DeltaTable

        with self._explained():
            if DeltaTable.is_deltatable(self.root.uri, storage_options=_options(self.root)):
                require_columns([field.name for field in self._open().schema().fields], self.root.uri)

    def _try_commit(self, release: Release) -> Committed:
        with self._explained():
            table = self._created(release)
            number = int(release.digest[:_DIGITS], 16)
            if table.transaction_version(self._run) != number:
                self._write(table, release, number)
                table.update_incremental()
            version = str(table.version())
        return Committed(
            format="delta", table=self.root.uri, version=version, parts=len(release.parts), digest=release.digest
        )

    @property
    def _run(self) -> str:
        """Name of the application: relative, so that a table that was copied knows its runs."""
        return f"sparse-detr:{self.folder}"

    @property
    def _count(self) -> str:
        """Name of the application whose number is that of the parts."""
        return f"sparse-detr-parts:{self.folder}"

    def _open(self) -> DeltaTable:
        from deltalake import DeltaTable

        return DeltaTable(self.root.uri, storage_options=_options(self.root))

    def _created(self, release: Release) -> DeltaTable:
        from deltalake import DeltaTable, Schema

        schema, options = release.schema(), _options(self.root)
        if not DeltaTable.is_deltatable(self.root.uri, storage_options=options):
            DeltaTable.create(self.root.uri, schema, mode="ignore", storage_options=options)
        table = self._open()
        # deltalake takes files with any columns into any table.
        if table.schema() != Schema.from_arrow(schema):
            raise ConfigError(
                f"table: {self.root.uri} has other columns than this run, which has {', '.join(schema.names)}; give "
                "another table_uri"
            )
        return table

    def _write(self, table: DeltaTable, release: Release, number: int) -> None:
        from deltalake.transaction import RemoveAction

        paths = pa.table(table.get_add_actions()).column("path").to_pylist()
        old = [path for path in paths if is_part_of(path, self.folder)]
        before = table.transaction_version(self._count)
        if before is not None:
            require_complete(len(old), before, self.root.uri)
        now = int(time.time() * 1000)
        # A part of the same name takes the place of the old one: Delta's log has the newest entry of a path.
        gone = set(old) - {self.folder + part.name for part in release.parts}
        actions: list[AddAction | RemoveAction] = [RemoveAction(path, True, now) for path in sorted(gone)]
        actions += self._additions(release, now)
        table.create_write_transaction(
            actions, "append", table.schema(), commit_properties=self._notes(release, number)
        )

    def _additions(self, release: Release, now: int) -> list[AddAction]:
        from deltalake.transaction import AddAction

        return [
            AddAction(self.folder + part.name, part.size, {}, now, True, json.dumps({"numRecords": part.rows}))
            for part in release.parts
        ]

    def _notes(self, release: Release, number: int) -> CommitProperties:
        from deltalake import CommitProperties, Transaction

        runs = [Transaction(self._run, number), Transaction(self._count, len(release.parts))]
        return CommitProperties(custom_metadata=dict(release.properties()), app_transactions=runs)

    def _explained(self) -> AbstractContextManager[None]:
        from deltalake.exceptions import CommitFailedError

        return explained(self.root.uri, passing=(CommitFailedError,))


def _options(root: Location) -> dict[str, str]:
    """What deltalake does not take from the AWS environment itself; no secrets."""
    if root.is_local:
        return {}
    # One of several that write the same version at once comes through.
    options = {"aws_conditional_put": "etag"}
    if endpoint():
        options |= {"aws_endpoint": endpoint(), "aws_allow_http": str(endpoint().startswith("http://")).lower()}
        if not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
            options["aws_region"] = "us-east-1"
    return options
