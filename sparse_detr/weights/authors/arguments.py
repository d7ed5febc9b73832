"""The flags of the authors' code that build a model of ours, where it can."""

from __future__ import annotations

from typing import Any

from sparse_detr.errors import require
from sparse_detr.model.config import ModelConfig

_FLAG_OF_BACKBONE = {"swin_tiny": "swin-t"}


def original_arguments(config: ModelConfig, *, ignore_scoring_mean: bool = False) -> dict[str, Any]:
    """The authors' flags that build this model.

    Args:
        ignore_scoring_mean: let a model pass whose scoring network was trained with the mean over an image's own
            tokens. The authors' code takes the mean over padding too: on padded batches it will choose other tokens.

    Raises:
        ConfigError: their code cannot build it; names the field.
    """
    _require_original(config)
    require(
        not config.sparse or config.scoring_mean == "all" or ignore_scoring_mean,
        f"scoring_mean: {config.scoring_mean!r}; the authors' scoring network counts padding into its mean, so in "
        "batches with padding their code would choose other tokens than this model; train with scoring_mean='all', or "
        "convert all the same with ignore_scoring_mean (sparse-detr convert: --ignore-scoring-mean)",
    )
    top_k = config.query_source == "top_k"
    return {
        "backbone": _FLAG_OF_BACKBONE.get(config.backbone.name, config.backbone.name),
        "hidden_dim": config.channels,
        "nheads": config.heads,
        "num_feature_levels": config.levels,
        "enc_n_points": config.points,
        "dec_n_points": config.points,
        "enc_layers": config.encoder_layers,
        "dec_layers": config.decoder_layers,
        "dim_feedforward": config.feedforward_channels,
        "num_queries": config.queries,
        "dropout": config.dropout,
        "two_stage": top_k,
        "with_box_refine": not config.shared_heads,
        "eff_query_init": top_k and config.query_content == "memory",
        "eff_specific_head": top_k and config.proposal_score == "best_class",
        "use_enc_aux_loss": config.encoder_auxiliary_loss,
        "rho": config.keep_ratio if config.sparse else 0.0,
    }


def _require_original(config: ModelConfig) -> None:
    top_k = config.query_source == "top_k"
    for fits, field, value, theirs in (
        (config.attention == "deformable", "attention", config.attention, "is deformable, 'full' is DETR's"),
        (
            not config.sparse or config.token_criterion == "decoder_attention",
            "token_criterion",
            config.token_criterion,
            "knows only decoder_attention",
        ),
        (
            config.box_refinement == top_k,
            "box_refinement",
            config.box_refinement,
            "refines boxes with top-k queries, and never without them",
        ),
        (config.backbone.norm == "frozen_batch_norm", "backbone.norm", config.backbone.norm, "freezes batch norm"),
        (config.backbone.name != "resnet_tiny", "backbone.name", config.backbone.name, "has no such backbone"),
    ):
        require(fits, f"{field}: {value!r}; the authors' code {theirs}, so this model stays in our format")
