"""The authors' names for our parameters, in both directions.

Source of the names: state_dict of kakaobrain/sparse-detr. There the heads are also reachable through encoder
and decoder, and a head that serves several layers through the number of each, so that a checkpoint holds them
up to 14 times; `canonical` tells which key is which tensor, `aliases` which keys a tensor has.
"""

from __future__ import annotations

import re

from sparse_detr.model.config import ModelConfig

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
    numbered = number_of_head(key, config.decoder_layers)
    head = _ALIAS.match(numbered)
    if head is None or not config.shared_heads or int(head["index"]) >= _sharing(config):
        return numbered
    return f"{head['kind']}_embed.0.{numbered[head.end() :]}"


def number_of_head(key: str, decoder_layers: int) -> str:
    """The name by number alone of a head that the authors also list under encoder and decoder.

    Numbers are those of the decoder's layers, then the proposals', then those of the encoder's layers.
    """
    alias = _ALIAS.match(key)
    if alias is None:
        return key
    index = int(alias["index"]) + (decoder_layers + 1 if alias["owner"] == "encoder" else 0)
    return f"{alias['kind']}_embed.{index}.{key[alias.end() :]}"


def aliases(key: str, config: ModelConfig) -> tuple[str, ...]:
    """The other names of the authors' tensor `key`, a canonical one.

    In two-stage models the decoder lists all heads of the model, the encoder those of its own layers.
    """
    head = _ALIAS.match(key)
    if head is None:
        return ()
    kind, leaf, index = f"{head['kind']}_embed", key[head.end() :], int(head["index"])
    numbers = range(_sharing(config)) if config.shared_heads else (index,)
    names = [f"{kind}.{number}.{leaf}" for number in numbers if number != index]
    if config.query_source == "top_k":
        names += [f"transformer.decoder.{kind}.{number}.{leaf}" for number in numbers]
    if index > config.decoder_layers:
        names.append(f"transformer.encoder.{kind}.{index - config.decoder_layers - 1}.{leaf}")
    return tuple(names)


def _sharing(config: ModelConfig) -> int:
    """Count of the head numbers that a shared head answers to: every decoder layer's, and the proposals'."""
    return config.decoder_layers + (config.query_source == "top_k")
