"""Published weights of backbones into ours, by name.

| weights | file |
|---|---|
| ResNets of torchvision | safetensors or `.pth`, batch norm folded or not |
| Swin-T (`swin_tiny_patch4_window7_224.pth`, detectors) | `.pth` with the weights under `model` or `state_dict` |
| SCRL, BYOL and other self-supervised ResNets | `.pth` with sections (`online_network_state_dict`) and prefixes
(`module.encoder.`); the layers may be numbered, as in a Sequential of torchvision's: 0 for conv1, 4 for layer1 |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparse_detr.errors import CheckpointError
from sparse_detr.model.backbone.base import Backbone
from sparse_detr.model.backbone.frozen_batch_norm import FrozenBatchNorm
from sparse_detr.model.base import Detector
from sparse_detr.storage.download import parse_address, read_checked
from sparse_detr.weights.state import LoadReport, check_keys, listed
from sparse_detr.weights.tensor_file import Sections, read_sections

_SECOND_CHOICE = re.compile(r"target|teacher|momentum|encoder_k|(^|[._/])ema", re.IGNORECASE)
"""Slowly moving copies of a network, which self-supervised training has beside the network itself."""
_BLOCK = re.compile(r"^(layer\d|layers\.\d\.blocks)\.(\d+)\.")
_FIXED = "relative_position_index"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The tensors of a file that may be a backbone."""

    section: str
    prefix: str
    tensors: dict[str, Tensor]
    """Under our names."""
    names: dict[str, str]
    """The file's name of each."""


def load_backbone(model: Detector, uri: str | Path) -> LoadReport:
    """Load published weights into the model's backbone: ResNet or Swin, as it is.

    Sections and prefixes around the names are found and taken off. Where a file holds a network and its moving
    average, the network is taken. Batch norm may be folded into the convolutions, whose biases then go into the
    frozen norm. A backbone with group norm takes the convolutions alone.

    Args:
        model: its backbone is changed, all of it or not at all. On the meta device nothing is changed, and all is
            checked but the table of offsets in a Swin's window, which then has no numbers.
        uri: path, `s3://` or `https://` address of a safetensors or PyTorch file, with a checksum if wanted (on the web
            always): see `download`. No code from the file runs.

    Raises:
        CheckpointError: not such a file, no key in common, two networks, or another network's depth or shapes.
        StorageError: it cannot be read, or has another checksum.
    """
    name = str(parse_address(uri))
    sections = read_sections(read_checked(uri), name)
    found = _find(model.backbone, sections, name, model.config.backbone.name)
    own = model.backbone.state_dict()
    frozen = any(isinstance(module, FrozenBatchNorm) for module in model.backbone.modules())
    content = _unfold(found.tensors) if frozen else _without_norms(found.tensors, model.backbone)
    loaded = sorted(content.keys() & own.keys())
    state = own | {key: content[key] for key in loaded}
    check_keys(own, state, name)
    _require_same_network(own, found.tensors, name, model.config.backbone.name)
    if not _is_meta(own):
        model.backbone.load_state_dict(state)
    folded = {f"{conv}.bias" for conv in _folded(found.tensors)} if frozen else set()
    used = {found.names[key] for key in found.names.keys() & ({*loaded} | folded)}
    return LoadReport(
        source=str(uri),
        loaded=tuple(loaded),
        fresh=tuple(sorted(own.keys() - set(loaded))),
        ignored=(*sorted(sections[found.section].keys() - used), *_other_sections(sections, found.section)),
        prefix=f"{found.section}{found.prefix}",
    )


def _find(backbone: Backbone, sections: Sections, name: str, kind: str) -> _Found:
    """Section of the file that holds most of the backbone's names; the stem must be among them."""
    own = backbone.state_dict().keys()
    places = [(len(own & place.tensors.keys()), place) for place in _candidates(sections, next(iter(own)))]
    if not places:
        keys = sorted(f"{section}{key}" for section, tensors in sections.items() for key in tensors)
        raise CheckpointError(
            f"{name}: holds {listed(keys)}; none is a key of {kind}, give weights with the names of torchvision "
            "(ResNet) or of the official Swin"
        )
    most = max(count for count, _ in places)
    best = [place for count, place in places if count == most]
    chosen = [place for place in best if not _SECOND_CHOICE.search(place.section + place.prefix)] or best
    if len(chosen) > 1:
        names = listed(f"{place.section}{place.prefix}" or "no prefix" for place in chosen)
        raise CheckpointError(f"{name}: holds {len(chosen)} networks, under {names}; give a file with one")
    return chosen[0]


def _candidates(sections: Sections, stem: str) -> Iterator[_Found]:
    for section, tensors in sections.items():
        for first, spell in ((stem, str), ("0.weight", _from_numbers)):
            for prefix in {key.removesuffix(first) for key in tensors if f".{key}".endswith(f".{first}")}:
                names = {spell(key.removeprefix(prefix)): key for key in tensors if key.startswith(prefix)}
                if stem in names:
                    ours = {key: tensors[theirs] for key, theirs in names.items()}
                    yield _Found(section=section, prefix=prefix, tensors=ours, names=names)


def _from_numbers(key: str) -> str:
    """torchvision's name of a tensor in a Sequential of a ResNet's children."""
    number, _, rest = key.partition(".")
    names = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return f"{names.get(number, number)}.{rest}"


def _other_sections(sections: Sections, chosen: str) -> list[str]:
    """Other sections of the file, by the outermost name: an optimizer has one for each parameter."""
    top = chosen.partition("/")[0]
    others = (section for section in sections if section != chosen)
    return sorted(
        {section if section.partition("/")[0] == top else f"{section.partition('/')[0]}/" for section in others}
    )


def _require_same_network(own: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str, kind: str) -> None:
    """Refuse what would load by name and still be another network."""
    ours, theirs = _blocks(own), _blocks(given)
    for stage in sorted(ours.keys() & theirs.keys()):
        if ours[stage] != theirs[stage]:
            raise CheckpointError(
                f"{name}: {stage} has {theirs[stage]} blocks, that of {kind} has {ours[stage]}; give weights of {kind} "
                "or correct backbone.name"
            )
    for key in sorted(own.keys() & given.keys()):
        if key.endswith(_FIXED) and not own[key].is_meta and not torch.equal(own[key], given[key].to(own[key])):
            raise CheckpointError(f"{name}: {key} numbers the offsets in a window otherwise; give a Swin of window 7")


def _is_meta(state: Mapping[str, Tensor]) -> bool:
    return any(tensor.is_meta for tensor in state.values())


def _blocks(names: Mapping[str, Tensor]) -> dict[str, int]:
    found = {match[1]: set[str]() for match in map(_BLOCK.match, names) if match}
    for match in filter(None, map(_BLOCK.match, names)):
        found[match[1]].add(match[2])
    return {stage: len(numbers) for stage, numbers in found.items()}


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


def _without_norms(content: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Without what published batch norms have for our group norms, whose numbers mean something else."""
    norms = {name for name, module in backbone.named_modules() if isinstance(module, nn.GroupNorm)}
    return {key: value for key, value in content.items() if key.rpartition(".")[0] not in norms}
