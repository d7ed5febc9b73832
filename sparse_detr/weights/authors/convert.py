"""The authors' checkpoints into our models, and back."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparse_detr.errors import CheckpointError
from sparse_detr.model.base import Detector
from sparse_detr.model.config import ModelConfig
from sparse_detr.storage.download import parse_address, read_checked
from sparse_detr.storage.location import locate
from sparse_detr.weights.authors.arguments import original_arguments
from sparse_detr.weights.authors.coco_classes import coco_91_classes
from sparse_detr.weights.authors.config import Hints, infer_config
from sparse_detr.weights.authors.names import aliases, canonical, number_of_head, original_name
from sparse_detr.weights.model_folder import MANIFEST
from sparse_detr.weights.state import check_keys
from sparse_detr.weights.tensor_file import is_safetensors, read_pickle

D = TypeVar("D", bound=Detector)

_COUNTERS = ("num_batches_tracked", "total_params", "total_ops")
_CONSTANTS = "relative_position_index"
_PARALLEL = "module."


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """Fate of the tensors of an authors' checkpoint, or of a model of ours on the way back."""

    config: ModelConfig
    """Of our model."""
    mapped: Mapping[str, str]
    """Our name of every tensor, by the authors' first name of it."""
    aliases: Mapping[str, str]
    """Further names of a tensor in the authors' checkpoint, with its first name; all copies are equal."""
    ignored: tuple[str, ...] = ()
    """Keys that hold no weights: counters of batches and operations."""
    assumed: tuple[str, ...] = ()
    """Fields that neither tensors nor arguments of the checkpoint gave, taken to be as usual."""


def convert_original(
    kind: Callable[[ModelConfig], D],
    source: Mapping[str, Any] | str | Path,
    keep_ratio: float | None = None,
    hints: Hints | None = None,
) -> tuple[D, ConversionReport]:
    """The model of an authors' checkpoint, in evaluation mode, and what was mapped.

    A model of 91 labels gets the class names of COCO.

    Args:
        kind: the class to build, as a rule `SparseDetr`, whose `from_original` calls this.
        source: their state_dict, alone or in the dict that their `.pth` file holds; or where that file is: a path,
            `s3://` or `https://` address as in `sparse_detr.storage.download`. Read with `weights_only`, so no code of
            the file runs.
        keep_ratio: the one it was trained with; needed for sparse models where the file does not tell.
        hints: what no tensor shows, where the file's arguments are absent or wrong.

    Raises:
        CheckpointError: unsafe, cut short or foreign file; unknown, missing or misshapen keys, named.
        ConfigError: a keep ratio that is lacking, or one or a hint that does not go with the model.
        StorageError: the file cannot be reached, or its checksum is another.
    """
    name = "state_dict" if isinstance(source, Mapping) else str(parse_address(source))
    tree = dict(source) if isinstance(source, Mapping) else _read(source)
    state, arguments = _unpack(tree, name)
    ignored = tuple(key for key in state if key.endswith(_COUNTERS))
    state = _without_prefix({key: value for key, value in state.items() if key not in ignored})
    config, assumed = infer_config(_by_number(state), arguments, keep_ratio, hints)
    model = kind(config)
    report = _fill(model, state, name)
    return model.eval(), replace(report, ignored=ignored, assumed=assumed)


def to_original(model: Detector, *, ignore_scoring_mean: bool = False) -> dict[str, Tensor]:
    """The state_dict that the authors' code has for this model: every key, aliases too, with the model's own tensors.

    Args:
        ignore_scoring_mean: see `original_arguments`.

    Raises:
        ConfigError: their code cannot build this model; names the field.
    """
    original_arguments(model.config, ignore_scoring_mean=ignore_scoring_mean)
    state = model.state_dict()
    report = original_report(model)
    result = {key: state[ours] for key, ours in report.mapped.items()}
    return result | {alias: result[key] for alias, key in report.aliases.items()}


def original_report(model: Detector) -> ConversionReport:
    """Report of what `to_original` maps."""
    config = model.config
    mapped = {original_name(key, config): key for key in model.state_dict()}
    copies = {alias: key for key in mapped for alias in aliases(key, config)}
    return ConversionReport(config=config, mapped=mapped, aliases=copies)


def original_file(model: Detector, *, ignore_scoring_mean: bool = False) -> bytes:
    """A `.pth` file that the authors' code loads: {"model": `to_original`, "args": their flags, a plain dict}."""
    state = to_original(model, ignore_scoring_mean=ignore_scoring_mean)
    arguments = original_arguments(model.config, ignore_scoring_mean=ignore_scoring_mean)
    # Aliases stay one tensor in the file, as long as each storage is moved once.
    moved = {id(value): value.detach().cpu().contiguous() for value in state.values()}
    buffer = io.BytesIO()
    torch.save({"model": {key: moved[id(value)] for key, value in state.items()}, "args": arguments}, buffer)
    return buffer.getvalue()


def _read(source: str | Path) -> object:
    address, content = parse_address(source), read_checked(source)
    if is_safetensors(content) and not address.on_web:
        folder = locate(locate(address.uri).uri.rpartition("/")[0] or "/")
        if folder.child(MANIFEST).exists():
            raise CheckpointError(f"{address}: it is one file of a model folder of ours; give the folder, {folder.uri}")
    remedy = "give a .pth file of the Sparse DETR authors' code, of tensors and plain values"
    return read_pickle(content, str(address), remedy)


def _unpack(tree: object, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and arguments of what a `.pth` file holds."""
    arguments: dict[str, Any] = {}
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        found = tree.get("args")
        found = vars(found) if isinstance(found, argparse.Namespace) else found
        arguments = dict(found) if isinstance(found, Mapping) else {}
        tree = tree["model"]
    if not isinstance(tree, dict) or not tree or not all(isinstance(value, Tensor) for value in tree.values()):
        raise CheckpointError(f"{name}: holds no state_dict; give a .pth file of the Sparse DETR authors' code")
    return {str(key): value for key, value in tree.items()}, arguments


def _fill(model: Detector, state: Mapping[str, Tensor], name: str) -> ConversionReport:
    """Load the state into the model, and name its classes."""
    config = model.config
    names = {original_name(key, config): key for key in model.state_dict()}
    own = dict(zip(names, model.state_dict().values(), strict=True))
    tensors, copies = _without_aliases(state, config)
    _fill_constants(tensors, own)
    check_keys(own, tensors, name)
    model.load_state_dict({names[key]: value for key, value in tensors.items()})
    coco = coco_91_classes()
    model.classes = coco if config.num_classes == len(coco) else None
    return ConversionReport(config=config, mapped=names, aliases=copies)


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what torch's DistributedDataParallel puts before every key."""
    if all(key.startswith(_PARALLEL) for key in state):
        return {key.removeprefix(_PARALLEL): value for key, value in state.items()}
    return dict(state)


def _by_number(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with the first name that each head has whatever the configuration."""
    layers = {key.split(".")[3] for key in state if key.startswith("transformer.decoder.layers.")}
    return {number_of_head(key, len(layers)): value for key, value in state.items()}


def _without_aliases(state: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, by its first name, and the other names."""
    tensors: dict[str, Tensor] = {}
    copies: dict[str, str] = {}
    for key, value in state.items():
        first = canonical(key, config)
        if first in tensors and not torch.equal(tensors[first], value):
            raise CheckpointError(
                f"{key}: differs from {first}, of which it should be a copy; the checkpoint contradicts itself, "
                "fetch it again"
            )
        tensors[first] = value
        if key != first:
            copies[key] = first
    return tensors, copies


def _fill_constants(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Swin's table of window offsets follows from the architecture: it may lack, but not differ."""
    for key, value in own.items():
        if key.endswith(_CONSTANTS) and not torch.equal(tensors.setdefault(key, value).to(value), value):
            raise CheckpointError(f"{key}: differs from that of Swin's windows of 7x7 tokens; give a Swin-T checkpoint")
