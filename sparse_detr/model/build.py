"""The one place where the numbers of a configuration meet the classes of the detector's parts."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from sparse_detr.model.backbone.base import Backbone
from sparse_detr.model.backbone.resnet import ResNet
from sparse_detr.model.backbone.swin import Swin
from sparse_detr.model.config import ModelConfig
from sparse_detr.model.decoder import Decoder, DecoderLayer
from sparse_detr.model.deformable_attention import DeformableAttention
from sparse_detr.model.encoder import Encoder, EncoderLayer
from sparse_detr.model.feature_pyramid import FeatureProjection
from sparse_detr.model.feed_forward import FeedForward
from sparse_detr.model.full_attention import FullAttention
from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.objectness import ObjectnessHead
from sparse_detr.model.proposals import LearnedQueries, ObjectQueries, TopKQueries
from sparse_detr.model.scoring_network import ScoringNetwork

Part = TypeVar("Part", bound=nn.Module)

_FIRST_BOX_BIAS = -2.0
"""Logit of width and height that learned queries start from."""


def build_backbone(config: ModelConfig) -> Backbone:
    """The network that turns images into feature maps; random weights."""
    return Swin(config.backbone) if config.backbone.name == "swin_tiny" else ResNet(config.backbone)


def build_feature_projection(config: ModelConfig, backbone: Backbone) -> FeatureProjection:
    """The step from the backbone's maps to tokens."""
    return FeatureProjection(backbone.channels, config.channels, config.levels)


def build_scoring_network(config: ModelConfig) -> ScoringNetwork | ObjectnessHead | None:
    """Token criterion of the configuration; None for the dense encoder."""
    if not config.sparse:
        return None
    if config.token_criterion == "objectness":
        return ObjectnessHead(_head(config))
    return _xavier(ScoringNetwork(config.channels, mean_over_all=config.scoring_mean == "all"))


def build_encoder(config: ModelConfig) -> Encoder:
    """The encoder, with a detection head on all layers but the last if they take part in the loss."""
    layers = [
        EncoderLayer(_attention(config), _feedforward(config), config.channels, config.dropout)
        for _ in range(config.encoder_layers)
    ]
    heads = [_head(config) for _ in range(config.encoder_layers - 1)] if config.encoder_auxiliary_loss else []
    return Encoder(layers, heads)


def build_queries(config: ModelConfig) -> TopKQueries | LearnedQueries | ObjectQueries:
    """Source of the decoder's queries."""
    if config.attention == "full":
        return ObjectQueries(config.channels, config.queries)
    if config.query_source == "learned":
        learned = LearnedQueries(config.channels, config.queries)
        _xavier(learned.reference_points)
        nn.init.zeros_(learned.reference_points.bias)
        return learned
    queries = TopKQueries(
        None if config.shared_heads else _head(config),
        config.channels,
        config.queries,
        content_from_memory=config.query_content == "memory",
        class_agnostic=config.proposal_score == "class_agnostic",
    )
    _xavier(queries.project)
    _xavier(queries.position)
    return queries


def build_decoder(config: ModelConfig) -> Decoder:
    """The decoder with a head for each layer, or one for all."""
    layers = [
        DecoderLayer(
            # torch starts the matrix behind its attention 1.7 times as narrow as xavier does.
            _xavier(nn.MultiheadAttention(config.channels, config.heads, dropout=config.dropout, batch_first=True)),
            _attention(config),
            _feedforward(config),
            config.channels,
            config.dropout,
        )
        for _ in range(config.decoder_layers)
    ]
    heads = [_head(config) for _ in range(1 if config.shared_heads else config.decoder_layers)]
    if config.query_source == "learned":
        nn.init.constant_(heads[0].boxes.last.bias[2:], _FIRST_BOX_BIAS)
    norm = nn.LayerNorm(config.channels) if config.attention == "full" else nn.Identity()
    return Decoder(layers, heads, norm, config.box_refinement)


def _attention(config: ModelConfig) -> DeformableAttention | FullAttention:
    if config.attention == "full":
        return _xavier(FullAttention(config.channels, config.heads, config.dropout))
    return DeformableAttention(config.channels, config.heads, config.levels, config.points)


def _feedforward(config: ModelConfig) -> FeedForward:
    return _xavier(FeedForward(config.channels, config.feedforward_channels, config.dropout))


def _head(config: ModelConfig) -> DetectionHead:
    return DetectionHead(config.channels, config.num_classes)


def _xavier(part: Part) -> Part:
    for parameter in part.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return part
