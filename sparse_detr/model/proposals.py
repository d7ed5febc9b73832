"""From encoder output to decoder queries: top-k proposals (Deformable DETR, appendix A.4; "efficient" in the
Sparse DETR code: class-specific scores, and content taken from the memory itself), or learned queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparse_detr.model.heads import DetectionHead
from sparse_detr.model.position_encoding import encode_boxes
from sparse_detr.model.reference_points import level_grid
from sparse_detr.model.token_selection import gather_tokens
from sparse_detr.records import FeaturePyramid, Predictions

_BASE_SIZE = 0.05
"""Side of a proposal on the finest level, relative to the image (Deformable DETR, appendix A.4)."""
_BORDER = 0.01
"""Nearer to 0 or 1 than this a box has no usable logit."""


class ProposalGrid(NamedTuple):
    """One box for every token: its cell's centre, and a size that doubles with each level."""

    logits: Float[Tensor, "B T 4"]
    """cxcywh before the sigmoid; infinite at unusable tokens, whose box is then (1, 1, 1, 1)."""
    unusable: Bool[Tensor, "B T"]
    """True in the padding and where a part of the box is within 0.01 of 0 or 1."""


class Queries(NamedTuple):
    """Start of the decoder: content, position and references of its queries."""

    content: Float[Tensor, "B Q C"]
    position: Float[Tensor, "B Q C"]
    references: Float[Tensor, "B Q size"]
    """(cx, cy, w, h), or (x, y) for learned queries; relative, without gradient to the boxes of proposals."""
    tokens: Int[Tensor, "B Q"] | None
    """The tokens that became queries; None for learned ones."""
    proposals: Predictions | None
    """First-stage predictions of all tokens, where asked for."""


def proposal_grid(pyramid: FeaturePyramid) -> ProposalGrid:
    """The proposals of all tokens, relative to each image's own area."""
    boxes = []
    for level, (height, width) in enumerate(pyramid.shapes):
        valid = pyramid.valid_ratios[:, None, level] * pyramid.valid_ratios.new_tensor((width, height))
        centre = level_grid(height, width, pyramid.valid_ratios) / valid.round()
        boxes.append(torch.cat((centre, torch.full_like(centre, _BASE_SIZE * 2**level)), dim=-1))
    proposals = torch.cat(boxes, dim=1)
    usable = ((proposals > _BORDER) & (proposals < 1 - _BORDER)).all(-1)
    unusable = pyramid.padding | ~usable
    logits = (proposals / (1 - proposals)).log().masked_fill(unusable[..., None], torch.inf)
    return ProposalGrid(logits, unusable)


class TopKQueries(nn.Module):
    """The best-scored tokens become decoder queries.

    Args:
        head: scores tokens and completes their proposals; None uses the one that `forward` is given.
        content_from_memory: a query's content is the memory's token; otherwise it is made from the proposal's box.
        class_agnostic: the first class logit alone ranks tokens.
    """

    def __init__(
        self,
        head: DetectionHead | None,
        channels: int,
        queries: int,
        *,
        content_from_memory: bool = True,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.queries = queries
        self.content_from_memory = content_from_memory
        self.class_agnostic = class_agnostic
        self.project = nn.Linear(channels, channels)
        self.project_norm = nn.LayerNorm(channels)
        self.head = head
        outputs = channels if content_from_memory else 2 * channels
        self.position = nn.Linear(2 * channels, outputs)
        self.position_norm = nn.LayerNorm(outputs)

    def embed(self, tokens: Float[Tensor, "B T C"], grid: ProposalGrid) -> Float[Tensor, "B T C"]:
        """Tokens prepared for scoring, those without a usable proposal as zeros.

        Used on the backbone's tokens for saliency and on the encoder's for proposals, with the same weights.
        """
        embedded: Tensor = self.project_norm(self.project(tokens.masked_fill(grid.unusable[..., None], 0.0)))
        return embedded

    def forward(
        self, memory: Float[Tensor, "B T C"], grid: ProposalGrid, shared_head: DetectionHead, with_proposals: bool
    ) -> Queries:
        """The Q tokens with the highest score (all T, if there are fewer), best first."""
        head = shared_head if self.head is None else self.head
        embedded = self.embed(memory, grid)
        if with_proposals:
            proposals = head(embedded, grid.logits)
            tokens = self._best(proposals.logits)
            references = gather_tokens(proposals.boxes, tokens)
        else:
            # Boxes of the chosen tokens alone, and no class logit that ranks nothing.
            proposals = None
            tokens = self._best(head.first_class(embedded) if self.class_agnostic else head.classes(embedded))
            references = head.boxes(gather_tokens(embedded, tokens), gather_tokens(grid.logits, tokens))
        # Boxes are refined from here on: their gradient ends at the proposal, which has a loss of its own.
        references = references.detach()
        position = self.position_norm(self.position(encode_boxes(references, memory.shape[2] // 2)))
        if self.content_from_memory:
            return Queries(gather_tokens(memory, tokens), position, references, tokens, proposals)
        position, content = position.chunk(2, dim=-1)
        return Queries(content, position, references, tokens, proposals)

    def _best(self, logits: Float[Tensor, "B T _"]) -> Int[Tensor, "B Q"]:
        scores = logits[..., 0] if self.class_agnostic else logits.amax(-1)
        return scores.topk(min(self.queries, scores.shape[1]), dim=1).indices


class LearnedQueries(nn.Module):
    """Queries that are the same for every image (Deformable DETR without its two-stage variant)."""

    def __init__(self, channels: int, queries: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(queries, 2 * channels)
        self.reference_points = nn.Linear(channels, 2)

    def forward(
        self, memory: Float[Tensor, "B T C"], grid: ProposalGrid, shared_head: DetectionHead, with_proposals: bool
    ) -> Queries:
        """The same queries for each image of `memory`; there are no proposals."""
        position, content = self.embedding.weight.expand(len(memory), -1, -1).chunk(2, dim=-1)
        return Queries(content, position, self.reference_points(position).sigmoid(), None, None)


class ObjectQueries(nn.Module):
    """DETR's queries: a learned position and no content, and boxes that start from nowhere."""

    def __init__(self, channels: int, queries: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(queries, channels)

    def forward(
        self, memory: Float[Tensor, "B T C"], grid: ProposalGrid, shared_head: DetectionHead, with_proposals: bool
    ) -> Queries:
        """The same queries for each image of `memory`. References of 0.5 have logit 0 and add nothing to a box."""
        position = self.embedding.weight.expand(len(memory), -1, -1)
        references = position.new_full((*position.shape[:2], 2), 0.5)
        return Queries(torch.zeros_like(position), position, references, None, None)
