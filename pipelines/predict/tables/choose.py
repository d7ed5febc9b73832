"""The table of a run: chosen by its options, noted in its output, and given the parts when they are whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipelines.predict.output import DETECTIONS_FOLDER, write_json
from pipelines.predict.tables.delta import DeltaFolder
from pipelines.predict.tables.iceberg import IcebergTable
from pipelines.predict.tables.release import Committed, Release, Table
from sparse_detr.errors import OutputExistsError
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.retry import patiently

if TYPE_CHECKING:
    from pipelines.predict.config import PredictConfig

TABLE_FILE = "_table.json"
"""Which table has or will have the parts of an output. `overwrite` leaves it: the table still names those files."""


def checked_table(config: PredictConfig) -> Table | None:
    """The table that the options name, found to be within reach in 15 seconds.

    Raises:
        ConfigError: its library is not installed, it has other columns, or its folder does not hold the output.
        StorageError: it is out of reach.
    """
    table = _chosen(config)
    if table is not None:
        table.check()
    return table


def _chosen(config: PredictConfig) -> Table | None:
    if config.table == "iceberg":
        assert config.table_name is not None
        return IcebergTable(name=config.table_name, catalog=config.catalog)
    if config.table == "delta":
        parts = locate(config.output).child(DETECTIONS_FOLDER)
        return DeltaFolder.of(parts if config.table_uri is None else locate(config.table_uri), parts)
    return None


def require_same_table(output: Location, table: Table | None) -> None:
    """Refuse to change, or to commit elsewhere, what a table holds already.

    Raises:
        OutputExistsError: the parts of this output are in another table than the given one.
    """
    file = output.child(TABLE_FILE)
    if not file.exists():
        return
    noted = json.loads(patiently(file.read_bytes))
    if table is None or noted != table.identity:
        words = " ".join(f"{name} {value}" for name, value in noted.items())
        raise OutputExistsError(
            f"table: the parts of {output.uri} are in a table already ({words}), which would not learn of a change; "
            f"give the same table, or another output; if that table is gone, delete {file.uri}"
        )


def commit(table: Table | None, release: Release) -> Committed | None:
    """Give the table, if there is one, the parts of a run, once however often this is called.

    Raises:
        StorageError: see `Table.commit`; the same call goes on.
    """
    if table is None:
        return None
    write_json(release.output.child(TABLE_FILE), table.identity)
    return table.commit(release)
