"""The detector: backbone, scoring network, sparse encoder, top-k queries, decoder (Sparse DETR, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_detr.model import build
from sparse_detr.model.base import Detector
from sparse_detr.model.config import ModelConfig
from sparse_detr.model.decoder import DecoderOutput
from sparse_detr.model.encoder import EncoderOutput
from sparse_detr.model.proposals import ProposalGrid, Queries, TopKQueries, proposal_grid
from sparse_detr.model.scoring_network import TokenScores
from sparse_detr.model.token_selection import select_tokens
from sparse_detr.records import FeaturePyramid, ImageBatch, Output
from sparse_detr.weights.authors.config import Hints
from sparse_detr.weights.authors.convert import convert_original
from sparse_detr.weights.model_folder import load_model


class SparseDetr(Detector):
    """A detector of the DETR family, as its configuration says; random weights at first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.backbone = build.build_backbone(config)
        self.feature_projection = build.build_feature_projection(config, self.backbone)
        self.scoring_network = build.build_scoring_network(config)
        self.encoder = build.build_encoder(config)
        self.queries = build.build_queries(config)
        self.decoder = build.build_decoder(config)

    def forward(
        self, batch: ImageBatch, keep_ratio: float | None = None, *, with_auxiliary: bool | None = None
    ) -> Output:
        """Detect objects.

        Args:
            batch: normalised RGB images, padded.
            keep_ratio: share of each image's tokens to update, in (0, 1], instead of the configured one; 1 runs
                the dense encoder.
            with_auxiliary: also return what only losses and explanations need: predictions of the other layers,
                of all tokens, and the decoder's attention. By default so in training mode alone.

        Raises:
            ConfigError: a keep ratio outside (0, 1], or below 1 where the model has no scoring network.
        """
        with_auxiliary = self.training if with_auxiliary is None else with_auxiliary
        ratio = self.config.checked_keep_ratio(keep_ratio)
        pyramid: FeaturePyramid = self.feature_projection(self.backbone(batch.pixels), batch.padding)
        grid = proposal_grid(pyramid)
        scored = self._score_tokens(pyramid, grid, ratio, with_auxiliary)
        selection = None if scored is None else select_tokens(scored.saliency, pyramid.padding, ratio)
        encoded: EncoderOutput = self.encoder(pyramid, selection, grid.logits, with_auxiliary)
        queries: Queries = self.queries(encoded.memory, grid, self.decoder.heads[0], with_auxiliary)
        decoded: DecoderOutput = self.decoder(queries, encoded.memory, pyramid, with_auxiliary)
        *earlier, last = decoded.predictions
        return Output(
            logits=last.logits,
            boxes=last.boxes,
            kept_tokens=None if selection is None else selection.kept,
            query_tokens=queries.tokens,
            shapes=pyramid.shapes,
            token_padding=pyramid.padding,
            selection=selection,
            decoder_auxiliary=tuple(earlier),
            encoder_auxiliary=encoded.auxiliary,
            proposals=queries.proposals,
            class_agnostic_proposals=self.config.proposal_score == "class_agnostic",
            objectness=None if scored is None else scored.predictions,
            decoder_attention=decoded.attention,
        )

    @classmethod
    def from_original(
        cls, source: Mapping[str, Any] | str | Path, keep_ratio: float | None = None, hints: Hints | None = None
    ) -> SparseDetr:
        """The model of an authors' checkpoint, in evaluation mode; `convert_original` also says what was mapped."""
        return convert_original(cls, source, keep_ratio, hints)[0]

    @classmethod
    def from_pretrained(cls, path_or_uri: str | Path) -> SparseDetr:
        """The model of a folder that `save_model` wrote, in evaluation mode; see `model_folder.load_model`."""
        return load_model(path_or_uri, cls)

    def _score_tokens(
        self, pyramid: FeaturePyramid, grid: ProposalGrid, ratio: float, with_predictions: bool
    ) -> TokenScores | None:
        if ratio == 1.0 or self.scoring_network is None:
            return None
        assert isinstance(self.queries, TopKQueries), "sparsity comes with top-k queries"
        tokens = self.queries.embed(pyramid.tokens + pyramid.position, grid)
        scored: TokenScores = self.scoring_network(tokens, pyramid.padding, grid.logits, with_predictions)
        return scored
