"""The authors' names for our parameters, and the configuration that their keys imply.

Source of the names: state_dict of kakaobrain/sparse-detr. There the heads are also reachable through encoder
and decoder, so that a checkpoint holds them two or three times; `canonical` tells which key is which tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from sparse_detr.errors import CheckpointError, ConfigError
from sparse_detr.model.config import BackboneConfig, ModelConfig

_RULES = (
    (r"^backbone\.", "backbone.0.body."),
    (r"^feature_projection\.projections\.", "input_proj."),
    (r"^feature_projection\.level_embedding$", "transformer.level_embed"),
    (r"^scoring_network\.embed\.", "transformer.enc_mask_predictor.layer1."),
    (r"^scoring_network\.score\.", "transformer.enc_mask_predictor.layer2."),
    (r"^queries\.project(_norm)?\.", r"transformer.enc_output\1."),
    (r"^queries\.position(_norm)?\.", r"transformer.pos_trans\1."),
    (r"^queries\.embedding\.", "query_embed."),
    (r"^queries\.reference_points\.", "transformer.reference_points."),
    (r"^(encoder|decoder)\.layers\.", r"transformer.\1.layers."),
    (r"^(transformer\.encoder.*)\.attention_norm\.", r"\1.norm1."),
    (r"^(transformer\.encoder.*)\.attention\.", r"\1.self_attn."),
    (r"^(transformer\.encoder.*)\.feedforward\.norm\.", r"\1.norm2."),
    (r"^(transformer\.decoder.*)\.cross_attention_norm\.", r"\1.norm1."),
    (r"^(transformer\.decoder.*)\.self_attention_norm\.", r"\1.norm2."),
    (r"^(transformer\.decoder.*)\.feedforward\.norm\.", r"\1.norm3."),
    (r"^(transformer\.decoder.*)\.(self|cross)_attention\.", r"\1.\2_attn."),
    (r"_attn\.(value|output)\.", r"_attn.\1_proj."),
    (r"\.feedforward\.expand\.", ".linear1."),
    (r"\.feedforward\.contract\.", ".linear2."),
)
_HEAD = re.compile(r"^(encoder\.heads\.(?P<encoder>\d+)|decoder\.heads\.(?P<decoder>\d+)|queries\.head)\.(?P<part>.*)$")
_BOX_LAYERS = {"first": 0, "second": 1, "last": 2}
_ALIAS = re.compile(r"^(transformer\.(?P<owner>encoder|decoder)\.)?(?P<kind>class|bbox)_embed\.(?P<index>\d+)\.")


def original_name(name: str, config: ModelConfig) -> str:
    """The authors' key of our parameter or buffer `name`."""
    if head := _HEAD.match(name):
        kind, _, rest = head["part"].partition(".")
        if head["decoder"] is not None:
            index = int(head["decoder"])
        else:  # The authors count: decoder layers, first stage, encoder layers.
            index = config.decoder_layers + (0 if head["encoder"] is None else 1 + int(head["encoder"]))
        if kind == "classes":
            return f"class_embed.{index}.{rest}"
        layer, _, leaf = rest.partition(".")
        return f"bbox_embed.{index}.layers.{_BOX_LAYERS[layer]}.{leaf}"
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def canonical(key: str, config: ModelConfig) -> str:
    """The first name of the authors' tensor `key`, which may be an alias of a head."""
    alias = _ALIAS.match(key)
    if alias is None:
        return key
    index = int(alias["index"]) + (config.decoder_layers + 1 if alias["owner"] == "encoder" else 0)
    if config.shared_heads and index < config.decoder_layers:
        index = 0  # One head serves all decoder layers.
    return f"{alias['kind']}_embed.{index}.{key[alias.end() :]}"


def infer_config(state: Mapping[str, Tensor], arguments: Mapping[str, Any], keep_ratio: float | None) -> ModelConfig:
    """What the keys and shapes of an authors' checkpoint say about its model.

    Args:
        state: by the authors' keys.
        arguments: their command line, as far as the checkpoint holds it: it tells what no shape does.
        keep_ratio: wins over the command line's.

    Raises:
        CheckpointError: not a checkpoint of this family, or of a variant that is not supported yet.
        ConfigError: the keep ratio is lacking, or does not go with the model.
    """
    levels, channels = _shape(state, "transformer.level_embed")
    two_stage = "transformer.enc_output.weight" in state
    heads = int(arguments.get("nheads", 8))
    samples = _shape(state, "transformer.encoder.layers.0.self_attn.attention_weights.bias")[0]
    encoder_layers, decoder_layers = (_count(state, f"transformer.{name}.layers.") for name in ("encoder", "decoder"))
    if two_stage and _shape(state, "transformer.pos_trans.weight")[0] != channels:
        raise CheckpointError(
            "transformer.pos_trans.weight: two-stage queries whose content is not the memory itself; only models "
            "trained with --eff_query_init are supported"
        )
    learned = None if two_stage else _shape(state, "query_embed.weight")[0]
    return ModelConfig(
        num_classes=_shape(state, "class_embed.0.bias")[0],
        backbone=BackboneConfig(name=_backbone(state)),
        channels=channels,
        heads=heads,
        levels=levels,
        points=samples // (heads * levels),
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        feedforward_channels=_shape(state, "transformer.encoder.layers.0.linear1.bias")[0],
        queries=int(arguments.get("num_queries", 300)) if learned is None else learned,
        query_source="top_k" if two_stage else "learned",
        box_refinement=two_stage,
        shared_heads=not two_stage,
        scoring_mean="all",
        keep_ratio=_keep_ratio("transformer.enc_mask_predictor.layer1.0.weight" in state, arguments, keep_ratio),
        encoder_auxiliary_loss=_count(state, "class_embed.") > decoder_layers + 1,
        dropout=float(arguments.get("dropout", 0.1)),
    )


def _keep_ratio(sparse: bool, arguments: Mapping[str, Any], keep_ratio: float | None) -> float:
    if not sparse:
        if keep_ratio not in (None, 1.0):
            raise ConfigError(f"keep_ratio: {keep_ratio}, but the checkpoint is dense; leave keep_ratio out or give 1")
        return 1.0
    ratio = arguments.get("rho") if keep_ratio is None else keep_ratio
    if not ratio or not 0.0 < float(ratio) < 1.0:
        raise ConfigError(
            f"keep_ratio: {ratio}; the checkpoint has a scoring network and does not say how many tokens it keeps, "
            "give the number it was trained with, in (0, 1), such as 0.1"
        )
    return float(ratio)


def _backbone(state: Mapping[str, Tensor]) -> Literal["resnet18", "resnet50"]:
    prefix = "backbone.0.body."
    if any(key.startswith(prefix + "patch_embed") for key in state):
        raise CheckpointError(f"{prefix}patch_embed: a Swin backbone; resnet18 and resnet50 are supported")
    depth = _count(state, prefix + "layer3.")
    bottleneck = f"{prefix}layer1.0.conv3.weight" in state
    if bottleneck and depth == 6:
        return "resnet50"
    if not bottleneck and depth == 2:
        return "resnet18"
    raise CheckpointError(f"{prefix}layer3: {depth} blocks; resnet18 (2) and resnet50 (6 bottlenecks) are supported")


def _count(keys: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix`."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in keys if key.startswith(prefix)})


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"{key}: missing; give a checkpoint of the Sparse DETR authors' code")
    return tuple(state[key].shape)
