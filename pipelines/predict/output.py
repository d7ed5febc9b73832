"""The output folder of a prediction: names of its files, and the claim of it.

A run writes `_run.json` before its first row and `_SUCCESS.json` after its last, so a reader can tell a whole result
from one that was cut short.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipelines.predict.fingerprint import Fingerprint
from sparse_detr.errors import OutputExistsError, SparseDetrError
from sparse_detr.storage.location import Location

RUN_FILE = "_run.json"


SUCCESS_FILE = "_SUCCESS.json"


COCO_RESULTS_FILE = "coco_results.json"


DETECTIONS_FOLDER = "detections"


def claim_output(output: Location, fingerprint: Fingerprint, facts: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make the folder this run's own by writing `_run.json`.

    A run that was cut short cannot be continued yet: it is refused like any other, whatever its fingerprint.

    Args:
        output: folder of the results.
        fingerprint: of this run.
        facts: what else `_run.json` shall say, such as the model's and the images' URIs.
        overwrite: delete the earlier results first. Only files of ours are deleted, never the folder itself.

    Raises:
        OutputExistsError: the folder holds results and `overwrite` is False; names both fingerprints.
    """
    check_output(output, fingerprint, overwrite=overwrite)
    if overwrite:
        # _SUCCESS goes first: without it, what is left of a deletion cut short is not taken for a result.
        for name in (SUCCESS_FILE, COCO_RESULTS_FILE):
            output.child(name).delete_file()
        output.child(DETECTIONS_FOLDER).delete_dir()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"fingerprint": fingerprint.digest, "settings": asdict(fingerprint), "started": started, **facts}
    write_json(output.child(RUN_FILE), content)


def check_output(output: Location, fingerprint: Fingerprint, *, overwrite: bool) -> None:
    """Raise OutputExistsError where `claim_output` would; changes nothing."""
    run = output.child(RUN_FILE)
    if overwrite or not (run.exists() or output.child(DETECTIONS_FOLDER).exists()):
        return
    state = "finished" if output.child(SUCCESS_FILE).exists() else "unfinished"
    raise OutputExistsError(
        f"output: {output.uri} holds the {state} results of a run with fingerprint {_recorded(run)}; this run's is "
        f"{fingerprint.digest}; choose another folder, or give overwrite to delete them (a run cannot be resumed yet)"
    )


def write_json(location: Location, content: Mapping[str, Any]) -> None:
    """Write a small JSON file that people read too."""
    location.write_bytes(json.dumps(content, indent=2).encode() + b"\n")


def _recorded(run: Location) -> str:
    try:
        return str(json.loads(run.read_bytes())["fingerprint"])
    except (SparseDetrError, ValueError, KeyError, TypeError):
        return "unknown"
