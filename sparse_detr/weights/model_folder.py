"""A model as a folder: weights as safetensors, configuration and class names as JSON. Nothing in it can run.

    model.safetensors   every parameter and buffer
    config.json         {"format": 2, "model": {...}, "classes": {...} or null, "image_size": {...} or null}
    manifest.json       size and SHA-256 of the other two

The manifest is removed first and written last, and every file is written whole or not at all: a folder with a
manifest that fits is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import CheckpointError, ConfigError
from sparse_detr.model.base import Detector
from sparse_detr.model.config import ModelConfig
from sparse_detr.records import Classes, ImageSize
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.s3 import explained
from sparse_detr.weights.state import check_keys, load_state

D = TypeVar("D", bound=Detector)

FORMAT = 2
WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"


def save_model(uri: str | Path, model: Detector) -> None:
    """Write `model` to a folder, local or in a store; a model that was there is replaced.

    Raises:
        StorageError: the folder cannot be written.
    """
    config = {
        "format": FORMAT,
        "model": to_dict(model.config),
        "classes": None if model.classes is None else to_dict(model.classes),
        "image_size": None if model.image_size is None else to_dict(model.image_size),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    files = {WEIGHTS: safetensors.torch.save(tensors), CONFIG: json.dumps(config, indent=2).encode()}
    folder = locate(uri)
    folder.child(MANIFEST).delete_file()
    for name, data in files.items():
        folder.child(name).write_bytes(data)
    folder.child(MANIFEST).write_bytes(json.dumps({name: _entry(data) for name, data in files.items()}).encode())


def load_model(uri: str | Path, kind: Callable[[ModelConfig], D]) -> D:
    """The model of a folder that `save_model` wrote, in evaluation mode, on the CPU.

    Args:
        uri: a path, `file:` or `s3://` URI.
        kind: the class to build, as a rule `SparseDetr`, whose `from_pretrained` calls this.

    Raises:
        CheckpointError: the folder is absent, incomplete, damaged, or of something else; the message says which.
        StorageError: the store cannot be reached.
    """
    folder = locate(uri)
    manifest = _read_json(folder, MANIFEST)
    files = {name: _read_verified(folder, name, manifest) for name in (WEIGHTS, CONFIG)}
    model = _parse_config(files[CONFIG], folder.child(CONFIG).uri, kind)
    load_state(model, _parse_weights(files[WEIGHTS], folder.child(WEIGHTS).uri), folder.child(WEIGHTS).uri)
    return model.eval()


def describe_model(uri: str | Path, kind: Callable[[ModelConfig], D]) -> D:
    """The model of a folder without its numbers, on the meta device: of the weights it reads the header alone.

    Raises:
        CheckpointError: as `load_model`, but for damage within the weights.
        StorageError: the store cannot be reached.
    """
    folder = locate(uri)
    manifest = _read_json(folder, MANIFEST)
    config, weights = _read_verified(folder, CONFIG, manifest), folder.child(WEIGHTS)
    with torch.device("meta"):
        model = _parse_config(config, folder.child(CONFIG).uri, kind)
    check_keys(model.state_dict(), _read_header(weights, manifest), weights.uri)
    return model.eval()


def _read_header(file: Location, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the meta device; its size must be the manifest's."""
    if not file.exists() or WEIGHTS not in manifest:
        raise CheckpointError(f"{file.uri}: missing or not in {MANIFEST}; fetch the model again")
    entry = manifest[WEIGHTS]
    expected = entry.get("size") if isinstance(entry, Mapping) else None
    with file.open_input() as stream, explained(file.uri):
        size = stream.size()
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(min(length, size))
    if size != expected:
        raise CheckpointError(
            f"{file.uri}: {size} bytes that are not those of {MANIFEST}: cut short, damaged or exchanged; "
            "fetch the model again"
        )
    entries = _parse_json(header, file.uri)
    try:
        return {
            name: torch.empty(entry["shape"], device="meta")
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{file.uri}: damaged, its header names tensors without shapes ({type(error).__name__}: {error}); fetch "
            "the model again"
        ) from None


def _entry(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read_json(folder: Location, name: str) -> Mapping[str, Any]:
    file = folder.child(name)
    kind = _other_kind(folder)
    if kind is not None:
        raise CheckpointError(
            f"{folder.uri}: {kind}, not a model folder; give a folder that holds {WEIGHTS}, {CONFIG} and {MANIFEST}, "
            "and load an authors' .pth file with SparseDetr.from_original"
        )
    if not file.exists():
        raise CheckpointError(f"{file.uri}: missing, so the model was not written to its end; give a complete one")
    return _parse_json(file.read_bytes(), file.uri)


def _other_kind(folder: Location) -> str | None:
    """Name of what is there instead of a model folder, whole or not; None where it is one."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "absent"
    ours = any(folder.child(name).exists() for name in (MANIFEST, CONFIG, WEIGHTS))
    return None if ours else "a folder without any file of a model"


def _parse_json(data: bytes, uri: str) -> Mapping[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{uri}: not JSON ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{uri}: holds no JSON object; fetch the model again")
    return content


def _read_verified(folder: Location, name: str, manifest: Mapping[str, Any]) -> bytes:
    file = folder.child(name)
    if not file.exists() or name not in manifest:
        raise CheckpointError(f"{file.uri}: missing or not in {MANIFEST}; fetch the model again")
    data = file.read_bytes()
    if _entry(data) != manifest[name]:
        raise CheckpointError(
            f"{file.uri}: {len(data)} bytes that are not those of {MANIFEST}: cut short, damaged or exchanged; "
            "fetch the model again"
        )
    return data


def _parse_config(data: bytes, uri: str, kind: Callable[[ModelConfig], D]) -> D:
    """The model with random weights."""
    content = _parse_json(data, uri)
    if content.get("format") not in (1, FORMAT):
        raise CheckpointError(f"{uri}: format {content.get('format')!r}; this version reads formats 1 and {FORMAT}")
    fields = content.get("model", {})
    try:
        model = kind(from_dict(ModelConfig, fields if content["format"] == FORMAT else _from_format_1(fields)))
        if content.get("classes") is not None:
            model.classes = from_dict(Classes, content["classes"])
        # Folders of earlier versions lack it.
        if content.get("image_size") is not None:
            model.image_size = from_dict(ImageSize, content["image_size"])
    except ConfigError as error:
        raise CheckpointError(f"{uri}: {error}") from error
    return model


def _from_format_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that format 1 lacks: it knew the authors' way of scoring, and one head where boxes were not refined."""
    names = ("attention", "query_content", "proposal_score", "token_criterion")
    present = to_dict(ModelConfig())
    return fields | {
        **{name: present[name] for name in names},
        "scoring_mean": "all",
        "shared_heads": not fields.get("box_refinement", True),
        "backbone": {**fields.get("backbone", {}), "drop_path": 0.0},
    }


def _parse_weights(data: bytes, uri: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{uri}: not a safetensors file ({error}); fetch the model again") from error
