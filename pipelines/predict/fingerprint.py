"""What decides a detection, as one short hash; and the claim of an output folder for one such hash.

An output folder never holds a mix of two models or settings. A run writes `_run.json` before its first row and
`_SUCCESS.json` after its last, so a reader can tell a whole result from one that was cut short.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from sparse_detr.errors import CheckpointError, OutputExistsError, SparseDetrError
from sparse_detr.model.checkpoint import CONFIG, MANIFEST, WEIGHTS
from sparse_detr.storage import Location

VERSION = 1
"""Raised when a change of the code changes detections for the same model and settings."""

RUN_FILE = "_run.json"
SUCCESS_FILE = "_SUCCESS.json"
COCO_RESULTS_FILE = "coco_results.json"
DETECTIONS_FOLDER = "detections"


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything that decides which boxes an image gets."""

    model_sha256: str
    """Of the model folder's weights and configuration."""
    keep_ratio: float
    short_side: int
    max_side: int
    score_threshold: float
    max_detections: int
    version: int = VERSION

    @cached_property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def model_sha256(model: Location) -> str:
    """Hash of a model's weights and configuration, wherever they lie and whenever they were written.

    Taken from the model folder's manifest, which `load_model` compares with the files themselves.

    Raises:
        CheckpointError: the manifest is not what `save_model` writes.
        StorageError: it cannot be read.
    """
    try:
        files = json.loads(model.child(MANIFEST).read_bytes())
        content = {name: files[name]["sha256"] for name in (CONFIG, WEIGHTS)}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{model.child(MANIFEST).uri}: not a model's manifest ({error}); fetch it again"
        ) from None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
