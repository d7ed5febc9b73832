"""A checkpoint of training as a folder: the model, and beside it what continues the run. Nothing in it can run.

    model/            as sparse_detr.weights.model_folder writes it; loads alone for inference
    trainer.pt        optimizer, raw weights under an average, counters, history: torch, loaded with weights_only=True
    checkpoint.json   {"format": 2, "files": size and SHA-256 of trainer.pt and of the model's manifest}

Format 1, of version 0.1, knows the ends of epochs alone; it is read too.

`checkpoint.json` is removed first and written last, so its presence says that all the rest is there, and its
hashes that the model and the training state belong together, also after a copy through a store.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.train.engine.loss_meter import SeenLosses
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError
from sparse_detr.records import BrokenImage
from sparse_detr.storage.location import locate
from sparse_detr.weights.model_folder import CONFIG, MANIFEST, WEIGHTS, save_model

FORMAT = 2
MODEL_FOLDER, TRAINER, SEAL = "model", "trainer.pt", "checkpoint.json"
FILES = (TRAINER, *(f"{MODEL_FOLDER}/{name}" for name in (WEIGHTS, CONFIG, MANIFEST)), SEAL)
"""All that a checkpoint consists of."""

_REMEDY = "give a whole checkpoint, or start without one"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """State that continues a run, beside the model itself."""

    epoch: int
    """Epochs that are complete."""
    step: int
    """Steps that are complete, over all epochs."""
    optimizer: Mapping[str, Any]
    """The optimizer's state_dict."""
    weights: Mapping[str, Tensor] | None = None
    """State of the trained weights where the saved model is their average."""
    average_updates: int = 0
    """Steps that went into the average."""
    history: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    """Metrics, one entry an epoch."""
    epoch_step: int = 0
    """Steps that are complete of the epoch that has begun."""
    seen: SeenLosses | None = None
    """Losses of these steps."""
    train_seconds: float = 0.0
    """Time that they took."""
    broken: Sequence[BrokenImage] = ()
    """Training images that could not be used so far."""
    skipped_updates: tuple[int, int] = (0, 0)
    """Updates that were left out in the epoch that has begun, and behind the last one that was not."""


_MAY_LACK = {"epoch_step", "seen", "train_seconds", "broken", "skipped_updates"}
"""What format 1 did not know, and format 2 not from its beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A training at one moment, as a copy on the host: it can be written while the training goes on."""

    model: SparseDetr
    state: TrainingState

    @classmethod
    def of(cls, model: SparseDetr, state: TrainingState) -> Snapshot:
        """Copies the model; the state has to be a copy already."""
        # On the meta device no memory is filled twice; the tensors of the copy take the place of those without number.
        with torch.device("meta"):
            copy = SparseDetr(model.config)
        copy.load_state_dict(on_host(model.state_dict()), assign=True)
        copy.classes, copy.image_size = model.classes, model.image_size
        return cls(model=copy.eval(), state=state)


def on_host(state: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dictionary whose tensors are copies on the CPU."""
    return {key: _copied(value) for key, value in state.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return on_host(value)
    return [_copied(each) for each in value] if isinstance(value, list) else value


def save_checkpoint(folder: Path, model: SparseDetr, state: TrainingState) -> None:
    """Write the model and the training state to a local folder; a checkpoint that was there is replaced.

    Raises:
        StorageError: the folder cannot be written.
    """
    target = locate(folder)
    target.child(SEAL).delete_file()
    save_model(folder / MODEL_FOLDER, model)
    trainer = _dump(state)
    target.child(TRAINER).write_bytes(trainer)
    files = {TRAINER: _entry(trainer), f"{MODEL_FOLDER}/{MANIFEST}": _entry(_read(folder / MODEL_FOLDER / MANIFEST))}
    target.child(SEAL).write_bytes(json.dumps({"format": FORMAT, "files": files}, indent=2).encode())


def load_checkpoint(folder: Path) -> tuple[SparseDetr, TrainingState]:
    """Read back a checkpoint of `save_checkpoint`: the model in evaluation mode, and the state, all tensors on the CPU.

    Raises:
        CheckpointError: cut short, damaged, put together from two, of another program, or unsafe; says which.
    """
    state = load_training_state(folder)
    return SparseDetr.from_pretrained(folder / MODEL_FOLDER), state


def load_training_state(folder: Path) -> TrainingState:
    """The training state alone; raises as `load_checkpoint` does."""
    files = _read_seal(folder)
    for name in (TRAINER, f"{MODEL_FOLDER}/{MANIFEST}"):
        if files.get(name) != _entry(_read(folder / name)):
            raise CheckpointError(
                f"{folder / name}: not the file that {SEAL} was written for: cut short, damaged or exchanged; {_REMEDY}"
            )
    return _parse(_read(folder / TRAINER), folder / TRAINER)


def _dump(state: TrainingState) -> bytes:
    content = {each.name: getattr(state, each.name) for each in fields(state)}
    # Plain types, since loading allows no others: a numpy number in a metric would make the file unreadable.
    content["history"] = [{name: float(value) for name, value in metrics.items()} for metrics in state.history]
    content["optimizer"] = dict(state.optimizer)
    content["weights"] = None if state.weights is None else dict(state.weights)
    content["skipped_updates"] = list(state.skipped_updates)
    content["broken"] = [[image.file, image.reason] for image in state.broken]
    if state.seen is not None:
        content["seen"] = {"names": list(state.seen.names), "sums": state.seen.sums}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _parse(data: bytes, path: Path) -> TrainingState:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on foreign pickles, which are refused here anyway
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own text advises to load without the protection; we do not repeat it.
        raise CheckpointError(
            f"{path}: holds more than tensors and numbers, perhaps code; refused, use a checkpoint of this program"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: not a file of torch.save ({error}); {_REMEDY}") from error
    names = {each.name for each in fields(TrainingState)}
    if not isinstance(content, dict) or not names - _MAY_LACK <= set(content) <= names:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: holds {found}, wanted {sorted(names)}; {_REMEDY}")
    seen = content.get("seen")
    if seen is not None:
        content["seen"] = SeenLosses(names=tuple(seen["names"]), sums=seen["sums"])
    content["broken"] = [BrokenImage(file=file, reason=reason) for file, reason in content.get("broken", ())]
    content["skipped_updates"] = tuple(content.get("skipped_updates", (0, 0)))
    return TrainingState(**content)


def _read_seal(folder: Path) -> Mapping[str, Any]:
    path = folder / SEAL
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, so this is no checkpoint, or one not written to its end; {_REMEDY}")
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); {_REMEDY}") from error
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise CheckpointError(f"{path}: not the seal of a checkpoint; {_REMEDY}")
    if content.get("format") not in (1, FORMAT):
        raise CheckpointError(
            f"{path}: format {content.get('format')!r}; this version reads formats 1 and {FORMAT}: {_REMEDY}, or go on "
            "with the version that wrote it"
        )
    return dict(content["files"])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error


def _entry(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
