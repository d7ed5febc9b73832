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
from sparse_detr.errors import SparseDetrError
from sparse_detr.storage.location import Location
from sparse_detr.storage.output import Claim, Existing, claim_folder

RUN_FILE = "_run.json"
SUCCESS_FILE = "_SUCCESS.json"
COCO_RESULTS_FILE = "coco_results.json"
DETECTIONS_FOLDER = "detections"
RESULTS = (SUCCESS_FILE, RUN_FILE, COCO_RESULTS_FILE, DETECTIONS_FOLDER)
"""Everything that a prediction leaves, in the order in which `overwrite` deletes it."""


def claim_output(output: Location, fingerprint: Fingerprint, existing: Existing) -> Claim:
    """Look whether this run may write to the folder; changes nothing.

    A run that was cut short cannot be continued yet: it is refused like any other, whatever its fingerprint.

    Raises:
        OutputExistsError: the folder holds results and `existing` is `refuse`; names both fingerprints.
    """

    def holds() -> str:
        state = "finished" if output.child(SUCCESS_FILE).exists() else "unfinished"
        recorded = _recorded(output.child(RUN_FILE))
        return f"the {state} results of a run with fingerprint {recorded}, this run's is {fingerprint.digest}"

    return claim_folder(output, existing, RESULTS, holds=holds)


def begin(claim: Claim, fingerprint: Fingerprint, facts: Mapping[str, Any]) -> None:
    """Delete what is to be overwritten, and make the folder this run's own by writing `_run.json`.

    Args:
        claim: of the folder.
        fingerprint: of this run.
        facts: what else `_run.json` shall say, such as the model's and the images' URIs.
    """
    claim.clear()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"fingerprint": fingerprint.digest, "settings": asdict(fingerprint), "started": started, **facts}
    write_json(claim.output.child(RUN_FILE), content)


def write_json(location: Location, content: Mapping[str, Any]) -> None:
    """Write a small JSON file that people read too."""
    location.write_bytes(json.dumps(content, indent=2).encode() + b"\n")


def _recorded(run: Location) -> str:
    try:
        return str(json.loads(run.read_bytes())["fingerprint"])
    except (SparseDetrError, ValueError, KeyError, TypeError):
        return "unknown"
