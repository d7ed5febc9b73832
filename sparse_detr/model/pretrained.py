"""Weights of others: the authors' checkpoints, and ImageNet ResNets under torchvision's names."""

from __future__ import annotations

import argparse
import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sparse_detr.coco_names import coco_91_classes
from sparse_detr.errors import CheckpointError
from sparse_detr.model.backbone.frozen_batch_norm import FrozenBatchNorm
from sparse_detr.model.config import ModelConfig
from sparse_detr.model.original_names import canonical, infer_config, original_name
from sparse_detr.model.sparse_detr import SparseDetr
from sparse_detr.model.state import listed, load_state
from sparse_detr.storage import locate

_COUNTERS = ("num_batches_tracked", "total_params", "total_ops")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What became of the tensors of a backbone file."""

    loaded: tuple[str, ...]
    """Backbone tensors that now hold the file's numbers."""
    fresh: tuple[str, ...]
    """Backbone tensors that the file does not have: they stay as they were."""
    ignored: tuple[str, ...]
    """The file's tensors that this backbone has no use for."""


def from_original(source: Mapping[str, Tensor] | str | Path, keep_ratio: float | None = None) -> SparseDetr:
    """The model of an authors' checkpoint, in evaluation mode. One of 91 labels gets the class names of COCO.

    Args:
        source: their state_dict, or a path or URI of their `.pth` file. Read with `weights_only`, so no code runs.
        keep_ratio: the one it was trained with; needed for sparse models where the file does not tell.

    Raises:
        CheckpointError: unsafe, cut short or foreign file; unknown, missing or misshapen keys, named.
        ConfigError: a keep ratio that is lacking or does not go with the model.
    """
    arguments: Mapping[str, Any] = {}
    if isinstance(source, Mapping):
        state, name = dict(source), "state_dict"
    else:
        state, arguments = _read_pickle(source)
        name = str(source)
    config = infer_config(state, arguments, keep_ratio)
    model = SparseDetr(config)
    load_state(model, _to_our_names(model, state), name)
    coco = coco_91_classes()
    model.classes = coco if config.num_classes == len(coco) else None
    return model.eval()


def _read_pickle(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(io.BytesIO(locate(path).read_bytes()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it is no PyTorch file or asks to run code while it is read ({_first_line(error)}); "
            "give a .pth file of tensors"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch checkpoint ({_first_line(error)}); fetch it again"
        ) from error
    arguments: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        arguments = dict(vars(content["args"])) if isinstance(content.get("args"), argparse.Namespace) else {}
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state_dict; give a .pth file of the Sparse DETR authors' code")
    return content, arguments


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _to_our_names(model: SparseDetr, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    config = model.config
    names = {original_name(key, config): key for key in model.state_dict()}
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith(_COUNTERS):
            continue
        first = canonical(key, config)
        ours = names.get(first, key)
        if ours in result and not torch.equal(result[ours], value):
            raise CheckpointError(f"{key}: differs from {first}, of which it should be a copy; {_copies(config)}")
        result[ours] = value
    return result


def _copies(config: ModelConfig) -> str:
    if config.box_refinement:
        return "the checkpoint contradicts itself, fetch it again"
    return "learned queries with a head for each layer (--with_box_refine without --two_stage) are not supported"


def load_backbone(model: SparseDetr, uri: str | Path) -> LoadReport:
    """Load an ImageNet ResNet (safetensors, torchvision's key names) into the model's backbone.

    Batch norm may be folded into the convolutions, whose biases then go into the frozen norm. A backbone with
    group norm takes the convolutions alone.

    Raises:
        CheckpointError: not a safetensors file, no key in common, or another ResNet's shapes; the backbone is
            as before.
    """
    try:
        content = safetensors.torch.load(locate(uri).read_bytes())
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{uri}: not a safetensors file ({_first_line(error)}); fetch it again") from error
    own = model.backbone.state_dict()
    frozen = isinstance(model.backbone.bn1, FrozenBatchNorm)
    tensors = _unfold(content) if frozen else {k: v for k, v in content.items() if not _is_norm(k, model.backbone)}
    loaded = sorted(tensors.keys() & own.keys())
    if not loaded:
        raise CheckpointError(
            f"{uri}: holds {listed(sorted(content))}; none is a key of {model.config.backbone.name}, "
            "give a ResNet with torchvision's names"
        )
    load_state(model.backbone, own | {key: tensors[key] for key in loaded}, str(uri))
    ignored = content.keys() - set(loaded) - ({f"{conv}.bias" for conv in _folded(content)} if frozen else set())
    return LoadReport(
        loaded=tuple(loaded), fresh=tuple(sorted(own.keys() - set(loaded))), ignored=tuple(sorted(ignored))
    )


def _folded(content: Mapping[str, Tensor]) -> list[str]:
    """Names of convolutions with a bias, which ResNets have only when batch norm is folded in."""
    return [key[: -len(".bias")] for key in content if re.search(r"(conv\d|downsample\.0)\.bias$", key)]


def _unfold(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The biases of convolutions as (minus) means of the norms behind them, which do nothing else."""
    tensors = dict(content)
    for name in _folded(content):
        bias = tensors.pop(f"{name}.bias")
        norm = re.sub(r"conv(\d)$", r"bn\1", re.sub(r"downsample\.0$", "downsample.1", name))
        tensors.setdefault(f"{norm}.weight", torch.ones_like(bias))
        tensors.setdefault(f"{norm}.bias", torch.zeros_like(bias))
        tensors.setdefault(f"{norm}.running_var", torch.full_like(bias, 1 - FrozenBatchNorm.epsilon))
        tensors[f"{norm}.running_mean"] = tensors.get(f"{norm}.running_mean", torch.zeros_like(bias)) - bias
    return tensors


def _is_norm(key: str, backbone: nn.Module) -> bool:
    owner, _, _ = key.rpartition(".")
    return isinstance(dict(backbone.named_modules()).get(owner), nn.GroupNorm)
