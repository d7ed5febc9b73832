"""The configuration that an authors' checkpoint implies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from sparse_detr.errors import CheckpointError, ConfigError
from sparse_detr.model.config import BackboneConfig, BackboneName, ModelConfig

Number = TypeVar("Number", int, float, bool)

_SWIN_DROP_PATH = 0.2
_BODY = "backbone.0.body."


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """Settings that no tensor of a checkpoint shows. None takes the file's arguments, else what is usual."""

    heads: int | None = None
    """M: attention heads; usually 8."""
    queries: int | None = None
    """Q of top-k queries; usually 300."""
    proposal_score: Literal["best_class", "class_agnostic"] | None = None
    """Usually "best_class" where queries take their content from the memory (the authors publish --eff_query_init and
    --eff_specific_head together), otherwise "class_agnostic"."""
    shared_heads: bool | None = None
    """Whether heads that hold equal numbers are one; usually they are. Only further training tells the difference."""


class Inferred(NamedTuple):
    """Configuration that a checkpoint shows, and what had to be assumed."""

    config: ModelConfig
    assumed: tuple[str, ...]
    """Fields that neither tensors nor arguments gave."""


class _Arguments:
    """The authors' command line as far as the file holds it; values of strangers, so each is checked."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.assumed: list[str] = []

    def get(self, name: str, kind: type[Number], usual: Number, hint: Number | None = None) -> Number:
        """The hint, else the file's value, else the usual one, which is noted."""
        if hint is not None:
            return hint
        value = self.values.get(name)
        if value is None:
            self.assumed.append(f"{name}: {usual}")
            return usual
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (isinstance(value, bool) if kind is bool else number) or kind(value) != value:
            raise CheckpointError(f"args.{name}: {value!r} is no {kind.__name__}; fetch the checkpoint again")
        return kind(value)

    def true(self, name: str) -> bool:
        """Whether the file says that this flag was given."""
        return self.values.get(name) is True


def infer_config(
    state: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    keep_ratio: float | None = None,
    hints: Hints | None = None,
) -> Inferred:
    """Configuration of a model from the keys and shapes of an authors' checkpoint.

    Boxes are refined where there are two stages, whatever `--with_box_refine` says: in the authors' code it only
    gives every layer a head of its own.

    Args:
        state: by the authors' keys; heads at least under `class_embed.0`, `bbox_embed.0` and so on.
        arguments: their command line, as far as the checkpoint holds it: it tells what no shape does.
        keep_ratio: wins over the command line's.
        hints: win over the command line.

    Raises:
        CheckpointError: not a checkpoint of this family.
        ConfigError: the keep ratio is lacking or wrong, or it or a hint does not go with the model.
    """
    hints, args = hints or Hints(), _Arguments(arguments)
    _refuse_dilation(args)
    levels, channels = _shape(state, "transformer.level_embed", 2)
    two_stage = _any(state, "transformer.enc_output", "transformer.pos_trans")
    encoder_layers, decoder_layers = (_count(state, f"transformer.{name}.layers.") for name in ("encoder", "decoder"))
    heads = args.get("nheads", int, 8, hints.heads)
    auxiliary = _count(state, "class_embed.") > decoder_layers + 1
    content: Literal["memory", "proposal"] = "memory" if not two_stage else _query_content(state, channels)
    config = ModelConfig(
        num_classes=_shape(state, "class_embed.0.bias", 1)[0],
        backbone=_backbone(state, args),
        channels=channels,
        heads=heads,
        levels=levels,
        points=_points(state, heads, levels),
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        feedforward_channels=_shape(state, "transformer.encoder.layers.0.linear1.bias", 1)[0],
        queries=_queries(state, args, two_stage, hints),
        query_source="top_k" if two_stage else "learned",
        query_content=content,
        proposal_score=_proposal_score(args, two_stage, content, hints),
        box_refinement=two_stage,
        shared_heads=not auxiliary and _shared_heads(state, args, decoder_layers + two_stage, hints),
        scoring_mean="all",
        keep_ratio=_keep_ratio(_any(state, "transformer.enc_mask_predictor."), arguments, keep_ratio),
        encoder_auxiliary_loss=auxiliary,
        dropout=args.get("dropout", float, 0.1),
    )
    return Inferred(config, tuple(args.assumed))


def _refuse_dilation(args: _Arguments) -> None:
    if args.true("dilation"):
        raise CheckpointError("args.dilation: True; a dilated last stage is not supported, give a model without it")


def _query_content(state: Mapping[str, Tensor], channels: int) -> Literal["memory", "proposal"]:
    rows = _shape(state, "transformer.pos_trans.weight", 2)[0]
    if rows == channels:
        return "memory"
    if rows == 2 * channels:
        return "proposal"
    raise CheckpointError(
        f"transformer.pos_trans.weight: {rows} rows, misshapen; queries of {channels} channels want {channels} "
        f"(--eff_query_init) or {2 * channels}"
    )


def _proposal_score(
    args: _Arguments, two_stage: bool, content: str, hints: Hints
) -> Literal["best_class", "class_agnostic"]:
    if hints.proposal_score is not None:
        return hints.proposal_score
    if not two_stage:
        return "best_class"  # There are no proposals.
    return "best_class" if args.get("eff_specific_head", bool, content == "memory") else "class_agnostic"


def _queries(state: Mapping[str, Tensor], args: _Arguments, two_stage: bool, hints: Hints) -> int:
    return args.get("num_queries", int, 300, hints.queries) if two_stage else _shape(state, "query_embed.weight", 2)[0]


def _points(state: Mapping[str, Tensor], heads: int, levels: int) -> int:
    key = "transformer.encoder.layers.0.self_attn.attention_weights.bias"
    samples = _shape(state, key, 1)[0]
    if heads < 1 or samples % (heads * levels):
        raise ConfigError(
            f"heads: {heads}; {key} has {samples} numbers, which {heads} heads and {levels} levels do not divide; "
            "give the heads that the model was trained with"
        )
    return samples // (heads * levels)


def _shared_heads(state: Mapping[str, Tensor], args: _Arguments, numbers: int, hints: Hints) -> bool:
    """One head under several numbers has equal tensors; heads of their own differ as soon as they are trained."""
    different = _different_head(state, numbers)
    separate = args.values.get("with_box_refine")
    if different is None:
        if hints.shared_heads is None and not isinstance(separate, bool) and numbers > 1:
            args.assumed.append("with_box_refine: False, as all heads hold equal numbers")
        return not args.true("with_box_refine") if hints.shared_heads is None else hints.shared_heads
    if hints.shared_heads:
        raise ConfigError(f"shared_heads: True, but {different} differs from the head of number 0; leave it out")
    if separate is False and hints.shared_heads is None:
        raise CheckpointError(
            f"{different}: differs from the head of number 0, of which it should be a copy, as the file's arguments "
            "say with_box_refine=False; the checkpoint contradicts itself, fetch it again"
        )
    return False


def _different_head(state: Mapping[str, Tensor], numbers: int) -> str | None:
    for key, first in state.items():
        kind, _, rest = key.partition(".0.")
        if kind in ("class_embed", "bbox_embed"):
            for number in range(1, numbers):
                other = f"{kind}.{number}.{rest}"
                if other in state and not torch.equal(first, state[other]):
                    return other
    return None


def _keep_ratio(sparse: bool, arguments: Mapping[str, Any], keep_ratio: float | None) -> float:
    if not sparse:
        if keep_ratio not in (None, 1.0):
            raise ConfigError(f"keep_ratio: {keep_ratio}, but the checkpoint is dense; leave keep_ratio out or give 1")
        return 1.0
    said = arguments.get("rho")
    ratio = said if keep_ratio is None else keep_ratio
    if isinstance(ratio, (int, float)) and 0.0 < ratio < 1.0:
        return float(ratio)
    if keep_ratio is not None:
        fault = f"keep_ratio: {keep_ratio}; the checkpoint has a scoring network, so it is sparse (args.rho: {said})"
    elif said is not None:
        fault = f"args.rho: {said!r} in the checkpoint is no number in (0, 1); keep_ratio wins over it"
    else:
        fault = "keep_ratio: None; the checkpoint has a scoring network and does not say how many tokens it keeps"
    raise ConfigError(f"{fault}, give the number it was trained with, in (0, 1), such as 0.1")


def _backbone(state: Mapping[str, Tensor], args: _Arguments) -> BackboneConfig:
    if _any(state, f"{_BODY}patch_embed"):
        depths = tuple(_count(state, f"{_BODY}layers.{stage}.blocks.") for stage in range(4))
        width = _shape(state, f"{_BODY}patch_embed.proj.bias", 1)[0]
        if depths != (2, 2, 6, 2) or width != 96:
            raise CheckpointError(f"{_BODY}layers: {depths} blocks of {width} channels; swin_tiny (2, 2, 6, 2; 96) is "
                                  "supported")  # fmt: skip
        return BackboneConfig(name="swin_tiny", drop_path=_SWIN_DROP_PATH)
    names: dict[tuple[bool, int], BackboneName] = {
        (False, 2): "resnet18",
        (True, 6): "resnet50",
        (True, 23): "resnet101",
    }
    depth = _count(state, f"{_BODY}layer3.")
    bottleneck = f"{_BODY}layer1.0.conv3.weight" in state
    if (bottleneck, depth) not in names:
        raise CheckpointError(
            f"{_BODY}layer3: {depth} {'bottlenecks' if bottleneck else 'basic blocks'}; resnet18 (2 basic blocks), "
            "resnet50 (6 bottlenecks), resnet101 (23) and swin_tiny are supported"
        )
    trained = args.true("finetune_early_layers") or args.true("backbone_from_scratch")
    return BackboneConfig(name=names[bottleneck, depth], frozen_stages=0 if trained else 2)


def _any(state: Mapping[str, Tensor], *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in state)


def _count(keys: Iterable[str], prefix: str) -> int:
    """Count of the numbers that follow `prefix`."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in keys if key.startswith(prefix)})


def _shape(state: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"{key}: missing; give a checkpoint of the Sparse DETR authors' code")
    shape = tuple(state[key].shape)
    if len(shape) != dimensions:
        raise CheckpointError(f"{key}: misshapen, {shape}; {dimensions} dimensions are wanted")
    return shape
