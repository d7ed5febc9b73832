"""Cost of a model for one image by formula: operations and parameters of every part (Sparse DETR, table 1).

It counts what runs at inference: no encoder auxiliary heads, boxes of the proposals that became queries alone, the
class head of the last decoder layer alone. The image has no padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sparse_detr.cost.backbone import BackboneCost, backbone_cost, convolution, strided
from sparse_detr.cost.work import Work, deformable_attention, feedforward, full_attention, layer_norm, linear
from sparse_detr.errors import require
from sparse_detr.model.config import ModelConfig
from sparse_detr.model.token_selection import kept_counts
from sparse_detr.records import Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """The cost of a model for one image."""

    parts: Mapping[str, Work]
    """backbone; projection (to tokens); scorer (with the proposal layers' first use, which prepares its input);
    encoder; proposals (from the encoder's tokens to queries); decoder (with its detection heads)."""
    height: int
    """Pixels."""
    width: int
    keep_ratio: float
    tokens: int
    """T, over all levels."""
    kept: int
    """K, the tokens that the encoder updates."""

    @property
    def whole(self) -> Work:
        """All parts together."""
        return sum(self.parts.values(), Work())


def model_cost(config: ModelConfig, height: int, width: int, keep_ratio: float | None = None) -> ModelCost:
    """Count the work on one image.

    Args:
        height, width: of the image after resizing, pixels.
        keep_ratio: share of the tokens to update instead of the configured one; 1 runs the dense encoder.

    Raises:
        ConfigError: a size below 1 pixel, a keep ratio outside (0, 1], or below 1 where the model has no scoring
            network.
    """
    for name, pixels in (("height", height), ("width", width)):
        require(pixels >= 1, f"{name}: {pixels}; give pixels, at least 1")
    ratio = config.checked_keep_ratio(keep_ratio)
    backbone = backbone_cost(config.backbone, height, width)
    projection, shapes = _projection(config, backbone)
    tokens = sum(rows * columns for rows, columns in shapes)
    kept = tokens if ratio == 1.0 else _kept(tokens, ratio)
    parts = {
        "backbone": backbone.work,
        "projection": projection,
        "scorer": _scorer(config, tokens) if ratio < 1.0 else _scorer(config, tokens).idle(),
        "encoder": _encoder(config, kept, tokens),
        "proposals": _proposals(config, tokens),
        "decoder": _decoder(config, query_count(config, tokens), tokens),
    }
    return ModelCost(parts=parts, height=height, width=width, keep_ratio=ratio, tokens=tokens, kept=kept)


def query_count(config: ModelConfig, tokens: int) -> int:
    """Q: fewer than configured where there are fewer tokens to choose from."""
    return min(config.queries, tokens) if config.query_source == "top_k" else config.queries


def head_cost(config: ModelConfig, classified: int, located: int) -> Work:
    """One detection head that classifies some tokens and gives boxes to some."""
    boxes = linear(located, config.channels, config.channels) * 2 + linear(located, config.channels, 4)
    return linear(classified, config.channels, config.num_classes) + boxes


def _kept(tokens: int, ratio: float) -> int:
    return min(int(kept_counts(torch.zeros(1, tokens, dtype=torch.bool), ratio)), tokens)


def _projection(config: ModelConfig, backbone: BackboneCost) -> tuple[Work, Shapes]:
    """A 1x1 convolution for each map, a 3x3 one of stride 2 for each further level, and the level embedding."""
    levels, channels = config.levels, config.channels
    shapes, inputs = list(backbone.shapes[-levels:]), backbone.channels[-levels:]
    work = Work(parameters=levels * channels)
    for (rows, columns), size in zip(shapes, inputs, strict=True):
        work += linear(rows * columns, size, channels) + layer_norm(rows * columns, channels)
    for size in (inputs[-1], *[channels] * levels)[: levels - len(inputs)]:
        work += convolution(shapes[-1], size, channels, 3, stride=2, bias=True)
        shapes.append(strided(shapes[-1], 2))
        work += layer_norm(shapes[-1][0] * shapes[-1][1], channels)
    return work, tuple(shapes)


def _scorer(config: ModelConfig, tokens: int) -> Work:
    if not config.sparse:
        return Work()
    channels, half, quarter = config.channels, config.channels // 2, config.channels // 4
    prepare = _proposal_embedding(config, tokens).reused()
    if config.token_criterion == "objectness":
        return prepare + head_cost(config, classified=tokens, located=0)
    embed = layer_norm(tokens, channels) + linear(tokens, channels, channels)
    score = linear(tokens, channels, half) + linear(tokens, half, quarter) + linear(tokens, quarter, 1)
    return prepare + embed + score


def _encoder(config: ModelConfig, kept: int, tokens: int) -> Work:
    layer = _attention(config, kept, tokens) + _feedforward(config, kept) + layer_norm(kept, config.channels)
    heads = config.encoder_layers - 1 if config.encoder_auxiliary_loss else 0
    return layer * config.encoder_layers + head_cost(config, 0, 0) * heads


def _proposals(config: ModelConfig, tokens: int) -> Work:
    queries, channels = config.queries, config.channels
    if config.attention == "full":
        return Work(parameters=queries * channels)
    if config.query_source == "learned":
        return Work(parameters=2 * queries * channels) + linear(queries, channels, 2)
    queries = query_count(config, tokens)
    if config.proposal_score == "class_agnostic":
        head = head_cost(config, classified=0, located=queries) + Work(products=tokens * channels)
    else:
        head = head_cost(config, classified=tokens, located=queries)
    outputs = channels if config.query_content == "memory" else 2 * channels
    position = linear(queries, 2 * channels, outputs) + layer_norm(queries, outputs)
    return _proposal_embedding(config, tokens) + (head.reused() if config.shared_heads else head) + position


def _decoder(config: ModelConfig, queries: int, tokens: int) -> Work:
    channels, depth = config.channels, config.decoder_layers
    self_attention = full_attention(queries, queries, channels) + layer_norm(queries, channels)
    cross_attention = _attention(config, queries, tokens) + layer_norm(queries, channels)
    layers = (self_attention + cross_attention + _feedforward(config, queries)) * depth
    located = queries * depth if config.box_refinement else queries
    further_heads = 0 if config.shared_heads else depth - 1
    heads = head_cost(config, classified=queries, located=located) + head_cost(config, 0, 0) * further_heads
    if config.attention == "full":
        heads += layer_norm(queries, channels)
    return layers + heads


def _proposal_embedding(config: ModelConfig, tokens: int) -> Work:
    return linear(tokens, config.channels, config.channels) + layer_norm(tokens, config.channels)


def _feedforward(config: ModelConfig, rows: int) -> Work:
    return feedforward(rows, config.channels, config.feedforward_channels) + layer_norm(rows, config.channels)


def _attention(config: ModelConfig, queries: int, tokens: int) -> Work:
    if config.attention == "full":
        return full_attention(queries, tokens, config.channels)
    return deformable_attention(queries, tokens, config.channels, config.levels * config.points, config.heads)
