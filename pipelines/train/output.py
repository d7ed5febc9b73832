"""The folder that a training writes: whether it is free, and what is in it at the end.

run.json        config and MLflow run, written first
checkpoints/    Ray Train's folder: the best checkpoints and the last
model/          the best model, for `SparseDetr.from_pretrained`
result.json     history and timing, written last
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.checkpoint import MODEL_FOLDER
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import CheckpointError, ConfigError, OutputExistsError
from sparse_detr.redaction import values_without_secrets
from sparse_detr.storage.location import Location

RUN_FILE = "run.json"
RESULT_FILE = "result.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"


def claim_output(output: Location, config: RunConfig) -> str | None:
    """Make sure that this run may write to `output`; return the MLflow run that it continues, if any.

    With `existing: overwrite` what a run left there is deleted, and nothing else; with `resume` the run that stands
    there goes on (nothing there is fine too).

    Raises:
        OutputExistsError: results stand there and the config says `refuse`.
        ConfigError: the run to resume has another model or optimizer.
    """
    found = [name for name in (RUN_FILE, CHECKPOINTS, MODEL, RESULT_FILE) if output.child(name).exists()]
    if not found:
        return None
    if config.existing == "overwrite":
        for name in (RUN_FILE, RESULT_FILE):
            output.child(name).delete_file()
        for name in (CHECKPOINTS, MODEL):
            output.child(name).delete_dir()
        return None
    if config.existing == "refuse":
        raise OutputExistsError(
            f"output: {output.uri} holds the results of another run ({', '.join(found)}); choose another output, "
            "or set existing to overwrite or resume"
        )
    return _continued(output, config)


def _continued(output: Location, config: RunConfig) -> str | None:
    if not output.child(RUN_FILE).exists():
        raise CheckpointError(
            f"{output.uri}: {RUN_FILE} is lacking, so this run cannot be resumed; set existing to overwrite"
        )
    before, run_id = _read_run(output.child(RUN_FILE))
    for name in ("model", "optimizer"):
        if getattr(before, name) != getattr(config, name):
            raise ConfigError(
                f"{name}: the run in {output.uri} has another one; resume with the same, or choose another output"
            )
    return run_id


def _read_run(file: Location) -> tuple[RunConfig, str | None]:
    content = file.read_bytes()
    try:
        record = json.loads(content)
        run_id = record["run_id"]
        return from_dict(RunConfig, record["config"]), str(run_id) if run_id else None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file.uri}: not what a training writes ({type(error).__name__}: {error}), so this run cannot be resumed; "
            "set existing to overwrite, or choose another output"
        ) from error


def write_run(output: Location, config: RunConfig, run_id: str | None) -> None:
    """Say which run the folder belongs to. Passwords, as in a tracking URI, are left out."""
    record = {"config": values_without_secrets(to_dict(config)), "run_id": run_id}
    output.child(RUN_FILE).write_bytes(json.dumps(record, indent=1).encode())


def write_result(output: Location, record: Mapping[str, Any]) -> None:
    """Write what the run found; its presence says that the run is complete."""
    output.child(RESULT_FILE).write_bytes(json.dumps(record, indent=1).encode())


def best_checkpoint(checkpoints: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Folder name with the highest AP among (name, metrics); the last one where none was evaluated."""
    if not checkpoints:
        raise CheckpointError("the run left no checkpoint; look into the workers' logs")
    return max(enumerate(checkpoints), key=lambda item: (item[1][1].get("ap", -1.0), item[0]))[1][0]


def publish_model(output: Location, checkpoint: str) -> Location:
    """Copy the model of a checkpoint to `output/model`, its manifest last."""
    target = output.child(MODEL)
    with tempfile.TemporaryDirectory(prefix="sparse-detr-") as folder:
        output.child(CHECKPOINTS, checkpoint, MODEL_FOLDER).download_to(Path(folder))
        target.copy_tree_from(Path(folder), last="manifest.json")
    return target
