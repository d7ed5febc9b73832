"""The output folder of a prediction: names of its files, and the record of the run that they belong to.

A run writes its manifest and then `_run.json` before its first row, and `_SUCCESS.json` after its last, so a reader
can tell a whole result from one that was cut short.

    _run.json            model, settings, images and their number
    _manifest.parquet    the images, as they were listed
    detections/          a Parquet part for each block of images
    errors.parquet       rows of the images that could not be used
    coco_results.json, detections.csv    where they were asked for
    _parts/              journal of the parts that are done
    _lease/              the job that holds the folder
    _table.json          the table that has the parts, where one was asked for
    _SUCCESS.json        written last: every part with rows, size and hash
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipelines.predict.fingerprint import Fingerprint
from sparse_detr.errors import CheckpointError, OutputExistsError
from sparse_detr.storage.location import Location
from sparse_detr.storage.output import Existing, claim_folder, require_apart
from sparse_detr.storage.retry import patiently

RUN_FILE = "_run.json"
MANIFEST_FILE = "_manifest.parquet"
SUCCESS_FILE = "_SUCCESS.json"
ERRORS_FILE = "errors.parquet"
COCO_RESULTS_FILE = "coco_results.json"
CSV_FILE = "detections.csv"
DETECTIONS_FOLDER = "detections"
PARTS_FOLDER = "_parts"
RESULTS = (
    SUCCESS_FILE, RUN_FILE, COCO_RESULTS_FILE, CSV_FILE, ERRORS_FILE, DETECTIONS_FOLDER, PARTS_FOLDER, MANIFEST_FILE,
)  # fmt: skip
"""Everything that a prediction leaves, in the order in which `overwrite` deletes it."""

MARKS = (RUN_FILE, MANIFEST_FILE)
"""Names that tell a run's folder from somebody else's."""

SCHEMA_VERSION = 2
"""Of the detections' columns and the files beside them; 1 had no manifest, journal and table of errors."""

Record = Mapping[str, Any]
"""Content of `_run.json`."""


def claim_output(
    output: Location,
    fingerprint: Fingerprint,
    collection: Record,
    existing: Existing,
    inputs: Mapping[str, str | None] | None = None,
) -> Record | None:
    """Look whether this run may write to the folder, and delete what it replaces; the record of the run to go on with.

    Args:
        output: the folder, which this job holds.
        fingerprint: of this run.
        collection: which images it looks at; see `begin`.
        existing: what to do where results are there.
        inputs: paths that the run reads, by the name of their field: none of them is overwritten.

    Raises:
        OutputExistsError: results are there and `existing` is `refuse`, or those of a run that differs (says in what),
            or files that no run wrote.
        CheckpointError: the folder does not say which run it belongs to.
    """
    claim = claim_folder(output, existing, RESULTS, marks=MARKS, holds=lambda: _described(output), resumable=True)
    if not claim.resumes:
        require_apart(output, claim.found, inputs or {})
        claim.clear()
        return None
    # Without its record, which is written before the first row, what is there is of no use: the listing was cut short.
    if not output.child(RUN_FILE).exists() and not output.child(DETECTIONS_FOLDER).exists():
        return None
    record = read_record(output)
    ours = {**asdict(fingerprint), **collection}
    theirs = {**record["settings"], **record["collection"]}
    changes = [
        f"{name}: {theirs.get(name)!r}, now {value!r}" for name, value in ours.items() if theirs.get(name) != value
    ]
    if changes:
        raise OutputExistsError(
            f"output: {output.uri} holds the {_state(output)} results of another run, with {'; '.join(changes)}; "
            "choose another output, run with the values it had, or set existing to overwrite"
        )
    return record


def begin(output: Location, fingerprint: Fingerprint, collection: Record, facts: Record) -> Record:
    """Make the folder this run's own by writing `_run.json`.

    Args:
        output: the folder.
        fingerprint: of this run.
        collection: which images it looks at: a run that goes on must have the same.
        facts: what else `_run.json` shall say, such as the number of images.
    """
    record = {
        "schema": SCHEMA_VERSION,
        "fingerprint": fingerprint.digest,
        "settings": asdict(fingerprint),
        "collection": dict(collection),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    }
    write_json(output.child(RUN_FILE), record)
    return record


def read_record(output: Location) -> Record:
    """Content of `_run.json`.

    Raises:
        CheckpointError: it is absent, or not what a run of this version writes.
    """
    file = output.child(RUN_FILE)
    if not file.exists():
        raise CheckpointError(
            f"{output.uri}: {RUN_FILE} is lacking, so this run cannot go on; set existing to overwrite"
        )
    try:
        record = json.loads(patiently(file.read_bytes))
        for name, kind in (("settings", dict), ("collection", dict), ("fingerprint", str), ("manifest", str)):
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is {record[name]!r}")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file.uri}: not what a run of this version writes ({type(error).__name__}: {error}), so it cannot go on; "
            "choose another output, or set existing to overwrite"
        ) from None
    return dict(record)


def write_json(location: Location, content: Record) -> None:
    """Write a small JSON file that people read too."""
    patiently(location.write_bytes, json.dumps(content, indent=1).encode() + b"\n")


def _described(output: Location) -> str:
    try:
        found = read_record(output)["fingerprint"]
    except CheckpointError:
        found = "unknown"
    return f"the {_state(output)} results of a run with fingerprint {found}"


def _state(output: Location) -> str:
    return "finished" if output.child(SUCCESS_FILE).exists() else "unfinished"
