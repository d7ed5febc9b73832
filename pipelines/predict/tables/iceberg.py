"""Iceberg: parts are added to a table as its data files, and a snapshot's properties say which run it is of.

pyiceberg finds catalogs in its own configuration: `PYICEBERG_CATALOG__NAME__URI` and the like, or `.pyiceberg.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from sparse_detr.redaction import is_secret
from sparse_detr.storage.location import Location
from sparse_detr.storage.retry import patiently
from sparse_detr.storage.s3 import endpoint

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

_READERS = 32
"""Footers of parts that are read at a time."""
_SHORTEST_SECRET = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class IcebergTable:
    """A table of an Iceberg catalog."""

    name: str
    """`namespace.table`."""
    catalog: str
    """Its name in pyiceberg's configuration."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Catalog and name."""
        return {"format": "iceberg", "table": self.name, "catalog": self.catalog}

    def check(self) -> None:
        """As `Table.check`."""
        require_installed("pyiceberg", "iceberg")
        in_time(self._look, self._shown)

    def commit(self, release: Release) -> Committed:
        """As `Table.commit`. Each try looks first whether the one before came through, unheard of."""
        return patiently(self._try_commit, release)

    @property
    def _shown(self) -> str:
        return f"{self.name} of the catalog {self.catalog}"

    def _look(self) -> None:
        with self._explained():
            catalog = self._catalog()
            if catalog.table_exists(self.name):
                require_columns([field.name for field in catalog.load_table(self.name).schema().fields], self._shown)
            else:
                # Asks about the warehouse too, where the answer about a table is a mere no.
                catalog.list_namespaces()

    def _try_commit(self, release: Release) -> Committed:
        with self._explained():
            table = self._table(release)
            snapshot = _last(table, release)
            if snapshot is None or _noted(snapshot)["sparse-detr.digest"] != release.digest:
                self._write(table, release, snapshot)
                snapshot = _last(table, release)
            assert snapshot is not None
            version = str(snapshot.snapshot_id)
        return Committed(
            format="iceberg", table=self.name, version=version, parts=len(release.parts), digest=release.digest
        )

    def _table(self, release: Release) -> Table:
        catalog = self._catalog()
        if not catalog.table_exists(self.name):
            catalog.create_namespace_if_not_exists(self.name.rpartition(".")[0])
            catalog.create_table_if_not_exists(self.name, schema=release.schema())
        table = catalog.load_table(self.name)
        # pyiceberg repeats an append that another commit overtook without a look at what that was: it may have been of
        # the same run. Changed in this handle alone, so that its error comes to `patiently`.
        properties = {**table.metadata.properties, "commit.retry.num-retries": "0"}
        table.metadata = table.metadata.model_copy(update={"properties": properties})
        return table

    def _write(self, table: Table, release: Release, before: Snapshot | None) -> None:
        old = list(_files(table, release))
        if before is not None:
            require_complete(len(old), int(_noted(before)["sparse-detr.parts"]), self._shown)
        paths = [_path(release.folder.child(part.name)) for part in release.parts]
        notes = dict(release.properties())
        if not old:
            table.add_files(paths, snapshot_properties=notes, check_duplicate_files=True)
            return
        new = _described(table, paths)
        with table.transaction() as transaction, transaction.update_snapshot(notes).overwrite() as change:
            for file in old:
                change.delete_data_file(file)
            for file in new:
                change.append_data_file(file)

    def _catalog(self) -> Catalog:
        from pyiceberg.catalog import load_catalog

        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        ours = {"s3.endpoint": endpoint(), "s3.region": region or ("us-east-1" if endpoint() else "")}
        return load_catalog(
            self.catalog, **{**{name: value for name, value in ours.items() if value}, **self._settings}
        )

    @property
    def _settings(self) -> dict[str, Any]:
        from pyiceberg.utils.config import Config

        # Read now: `load_catalog` itself knows the environment as it was at the import of its module.
        found = Config().get_catalog_config(self.catalog)
        if not found:
            raise ConfigError(
                f"catalog: pyiceberg's configuration has none of the name {self.catalog!r}; set "
                f"PYICEBERG_CATALOG__{self.catalog.upper()}__URI, or write it into .pyiceberg.yaml"
            )
        return dict(found)

    def _explained(self) -> AbstractContextManager[None]:
        from pyiceberg.exceptions import (
            CommitFailedException,
            CommitStateUnknownException,
            ServerError,
            ServiceUnavailableError,
            TooManyRequestsError,
        )

        passing = (
            CommitFailedException, CommitStateUnknownException, ServerError, ServiceUnavailableError,
            TooManyRequestsError, ConnectionError,
        )  # fmt: skip
        values = [str(value) for name, value in self._settings.items() if is_secret(name, str(value))]
        secrets = [word for value in values for word in (value, *value.split(":")) if len(word) >= _SHORTEST_SECRET]
        return explained(self._shown, passing=passing, secrets=secrets)


def _noted(snapshot: Snapshot) -> Mapping[str, str]:
    return {} if snapshot.summary is None else snapshot.summary.additional_properties


def _last(table: Table, release: Release) -> Snapshot | None:
    """The newest commit of this output."""
    from pyiceberg.table.snapshots import ancestors_of

    for snapshot in ancestors_of(table.current_snapshot(), table.metadata):
        if _noted(snapshot).get("sparse-detr.output") == release.output.uri:
            return snapshot
    return None


def _files(table: Table, release: Release) -> Iterator[DataFile]:
    """Parts of this output that the table has."""
    folder = _path(release.folder) + "/"
    for task in table.scan().plan_files():
        if is_part_of(task.file.file_path, folder):
            yield task.file


def _described(table: Table, paths: list[str]) -> list[DataFile]:
    from pyiceberg.io.pyarrow import parquet_file_to_data_file

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda path: parquet_file_to_data_file(table.io, table.metadata, path), paths))


def _path(location: Location) -> str:
    return f"file://{location.path}" if location.is_local else location.uri
