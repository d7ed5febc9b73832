"""Output folder of a training: the claim of it, and its records.

run.json            config and MLflow run, written first
checkpoints/        the best checkpoints and the last
broken_images.json  training images that could not be used, where they are skipped and there are any
not_finite/         steps whose numbers were not finite, for `sparse-detr train --replay`
model/              the best model, for `SparseDetr.from_pretrained`
events.json         restarts and numbers of workers so far
result.json         history, timing and events, written last
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.recipes.data import DataConfig
from pipelines.recipes.optimizer import OptimizerConfig
from pipelines.recipes.override import field_values
from pipelines.recipes.paths import inputs
from pipelines.train.engine.checkpoint import MODEL_FOLDER
from pipelines.train.engine.checkpoint_store import CheckpointStore, Position, ap_of
from pipelines.train.engine.evidence import FOLDER
from pipelines.train.record import EVENTS_FILE
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import CheckpointError, require
from sparse_detr.records import BrokenImage
from sparse_detr.redaction import values_without_secrets
from sparse_detr.storage.location import Location
from sparse_detr.storage.output import Claim, claim_folder, require_apart

RUN_FILE = "run.json"
RESULT_FILE = "result.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"
BROKEN_IMAGES = "broken_images.json"

RESULTS = (RESULT_FILE, EVENTS_FILE, RUN_FILE, CHECKPOINTS, MODEL, BROKEN_IMAGES, FOLDER)
"""Everything that a training leaves, in the order in which it is deleted: first what says that it is complete."""

MAY_CHANGE = frozenset(
    {
        "name",
        "output",
        "existing",
        "tracking_uri",
        "experiment",
        "registered_model",
        "model_alias",
        "data.loader_workers",
        "data.cache",
        "data.broken_images",
        "data.broken_share",
        "training.not_finite",
        "training.epochs",
        "training.early_stop_epochs",
        "training.activation_checkpointing",
        "training.workers",
        "training.cpus_per_worker",
        "training.use_gpu",
        "training.explain_images",
        "training.checkpoint_minutes",
        "training.checkpoint_patience_minutes",
        "training.checkpoint_steps",
        "training.keep_checkpoints",
        "training.max_failures",
        "training.min_workers",
        "training.hang_minutes",
        "training.stop_seconds",
    }
)
"""Fields that a resumed run may have otherwise: how long, on which machines, and where it is recorded. Every other
field, one that is added later too, must be as it was: it decides what is learned, or which epoch counts as the best."""


_MAY_GROW = {"data": DataConfig, "optimizer": OptimizerConfig, "training": TrainingConfig}
"""Parts of a run's config that an earlier version recorded with fewer fields. By default a field that one of them gets
does what was done before it, so its default is what the earlier run did. Model and losses are recorded whole."""


_NEW = ("registered_model", "model_alias")
"""Fields of the run itself that an earlier version lacks: likewise."""


def claim_output(output: Location, config: RunConfig) -> Claim:
    """Look whether this run may write to `output`; changes nothing.

    With `existing: overwrite` the claim deletes what a run left there, and nothing else; with `resume` the run that is
    there goes on (nothing there is fine too).

    Raises:
        OutputExistsError: results are there and the config says `refuse`, or they are no training's, or `overwrite`
            would delete what this run reads.
    """
    claim = claim_folder(output, config.existing, RESULTS, marks=(RUN_FILE,), resumable=True)
    if config.existing == "overwrite":
        require_apart(output, claim.found, inputs(config))
    return claim


def continued_run(claim: Claim, config: RunConfig) -> tuple[RunConfig, str | None]:
    """Make sure that this run may go on with what is there; return it with the size of micro-batches settled, which
    is that of the run before where this one leaves it open, and the MLflow run, if any.

    Raises:
        CheckpointError: the folder does not say which run it belongs to.
        ConfigError: the run to resume differs in a field that may not change (names all of them), or has done more
            epochs than are asked for.
    """
    if not claim.resumes:
        return _settled(config, config), None
    output = claim.output
    before, run_id = _read_run(output.child(RUN_FILE))
    before, config = _settled(before, before), _same_version(_settled(config, before), before)
    changes = differences(to_dict(before), to_dict(config))
    require(
        not changes,
        f"existing: 'resume', but the run in {output.uri} differs in {'; '.join(changes)}; resume with the values it "
        "had, or choose another output",
    )
    newest = checkpoints_of(output, config).newest()
    begun = 0 if newest is None else newest.begun
    require(
        config.training.epochs >= begun,
        f"training.epochs: {config.training.epochs}, but the run in {output.uri} has done or begun {begun}; give at "
        f"least {begun}",
    )
    return config, run_id


def _settled(config: RunConfig, source: RunConfig) -> RunConfig:
    """The run with a size of micro-batches: its own, or that of `source`."""
    size = config.training.micro_batch or source.training.images_per_micro_batch
    return replace(config, training=replace(config.training, micro_batch=size))


def _same_version(config: RunConfig, source: RunConfig) -> RunConfig:
    """The run with the version of `init_model` that `source` has, where this one names it by an alias, or `latest`."""
    given, had = config.training.init_model or "", source.training.init_model or ""
    name = given.partition("@")[0].removesuffix("/latest")
    if not given.startswith("models:/") or name == given or had.rpartition("/")[0] != name:
        return config
    return replace(config, training=replace(config.training, init_model=had))


def checkpoints_of(output: Location, config: RunConfig) -> CheckpointStore:
    """The checkpoints of a run."""
    return CheckpointStore(folder=output.child(CHECKPOINTS), keep=config.training.keep_checkpoints)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields that may not change and did, as "optimizer.lr: 0.1, now 0.2", of two configs as dictionaries.

    Values are compared without secrets too, because the record of the earlier run has none.
    """
    old, new = (field_values(values_without_secrets(config)) for config in (before, now))
    return [
        f"{name}: {old[name]!r}, now {new[name]!r}" for name in new if name not in MAY_CHANGE and old[name] != new[name]
    ]


def _read_run(file: Location) -> tuple[RunConfig, str | None]:
    content = file.read_bytes()
    try:
        record = json.loads(content)
        run_id = record["run_id"]
        config = {**{name: value for name, value in to_dict(RunConfig()).items() if name in _NEW}, **record["config"]}
        config |= {name: to_dict(kind()) | config[name] for name, kind in _MAY_GROW.items()}
        return from_dict(RunConfig, config), str(run_id) if run_id else None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file.uri}: not what a training writes ({type(error).__name__}: {error}), so this run cannot be resumed; "
            "set existing to overwrite, or choose another output"
        ) from error


def begin_run(output: Location, config: RunConfig, run_id: str | None) -> None:
    """Say which run the folder belongs to, and no longer that it is complete.

    Passwords, as in a tracking URI, are left out.
    """
    output.child(RESULT_FILE).delete_file()
    record = {"config": values_without_secrets(to_dict(config)), "run_id": run_id}
    output.child(RUN_FILE).write_bytes(json.dumps(record, indent=1).encode())


def write_result(output: Location, record: Mapping[str, Any]) -> None:
    """Write what the run found; its presence says that the run is complete."""
    output.child(RESULT_FILE).write_bytes(json.dumps(record, indent=1).encode())


def write_broken_images(output: Location, images: Sequence[BrokenImage]) -> None:
    """List training images that could not be used, each with the reason; an earlier list is replaced."""
    content = json.dumps([to_dict(image) for image in images], indent=1, ensure_ascii=False)
    output.child(BROKEN_IMAGES).write_bytes(content.encode())


def read_broken_images(output: Location) -> list[dict[str, str]]:
    """That list; empty where there is none."""
    file = output.child(BROKEN_IMAGES)
    found: list[dict[str, str]] = json.loads(file.read_bytes()) if file.exists() else []
    return found


def best_checkpoint(checkpoints: CheckpointStore, history: Sequence[Mapping[str, float]]) -> str:
    """Folder name of the checkpoint with the highest AP; the last one where none was evaluated."""
    whole = checkpoints.whole()
    if not whole:
        raise CheckpointError("the run left no checkpoint; look into the workers' logs")

    def rank(place: Position) -> tuple[float, Position]:
        ap = ap_of(place, history)
        return (-1.0 if ap is None else ap, place)

    return str(max(whole, key=rank))


def publish_model(output: Location, checkpoint: str) -> Location:
    """Copy the model of a checkpoint to `output/model`, its manifest last."""
    target = output.child(MODEL)
    with tempfile.TemporaryDirectory(prefix="sparse-detr-") as folder:
        output.child(CHECKPOINTS, checkpoint, MODEL_FOLDER).download_to(Path(folder))
        target.copy_tree_from(Path(folder), last="manifest.json")
    return target
