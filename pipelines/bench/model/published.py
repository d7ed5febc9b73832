"""The published table of cost (Sparse DETR, table 1 and README of its code) beside the formula.

The authors count what their code runs (with fvcore), which is more than the outputs need; `needless` is the difference.
Their sparse rows fit an image of 800x1066 without the encoder's auxiliary heads, their dense rows one of 850x1040, the
size that their script takes when it has no images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from sparse_detr.cost.model import ModelCost, head_cost, model_cost, query_count
from sparse_detr.cost.work import Work
from sparse_detr.detector import SparseDetr
from sparse_detr.model.config import BackboneConfig, BackboneName, ModelConfig

SPARSE_SIZE = (800, 1066)
DENSE_SIZE = (850, 1040)
"""Images, (height, width) in pixels, at which the published rows fit the formula to 0.05%."""
_GIGA = 10**9
_INSTEAD = {
    "boxes of tokens that become no query": "boxes of tokens that become queries",
    "boxes of decoder layers, again or unused": "once, where the next layer or the result needs them",
    "class heads of earlier decoder layers": "for losses alone",
    "class logits that rank nothing": "the one column that ranks",
    "the encoder's auxiliary heads": "for losses alone",
}
"""Operations that this code runs in place of needless ones; in the order of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One row of the published table."""

    name: str
    config: ModelConfig
    giga: float
    """Published multiply-adds, in 10^9."""
    millions: float
    """Published parameters, in 10^6: those that are trained, without the encoder's auxiliary heads."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) at which the row was counted, inferred from its number."""
        return SPARSE_SIZE if self.config.sparse else DENSE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRow:
    """A published row beside the formula, all in 10^9 multiply-adds."""

    row: PublishedRow
    authors: float
    """GFLOPs of the authors' code, by the formula."""
    ours: float
    """GFLOPs of this code for the same outputs."""
    millions: float
    """Parameters of this code's model, counted as the published ones, in 10^6."""

    @property
    def difference(self) -> float:
        """Of the formula from the published number, in percent."""
        return (self.authors / self.row.giga - 1) * 100


def published_rows() -> tuple[PublishedRow, ...]:
    """All 14 rows of ResNet-50 and Swin-T."""
    columns: dict[BackboneName, tuple[str, tuple[float, ...], tuple[float, ...]]] = {
        "resnet50": ("R50", (172.9, 177.3, 105.4, 112.9, 120.5, 128.0, 135.6), (39.8, 40.8, *[40.9] * 5)),
        "swin_tiny": ("Swin-T", (180.4, 184.8, 113.4, 121.0, 128.5, 136.1, 143.7), (40.3, 41.3, *[41.4] * 5)),
    }
    return tuple(
        PublishedRow(name=f"{title}, {name}", config=config, giga=giga, millions=millions)
        for backbone, (title, gigas, parameters) in columns.items()
        for (name, config), giga, millions in zip(_family(backbone).items(), gigas, parameters, strict=True)
    )


def compare(row: PublishedRow) -> ComparedRow:
    """Count one row."""
    cost = model_cost(row.config, *row.size)
    authors = cost.whole + sum(needless(row.config, cost).values(), Work())
    return ComparedRow(
        row=row,
        authors=authors.total / _GIGA,
        ours=cost.whole.total / _GIGA,
        millions=_trained_parameters(row.config) / 10**6,
    )


def _trained_parameters(config: ModelConfig) -> int:
    # On the meta device, which holds no numbers.
    with torch.device("meta"):
        model = SparseDetr(config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trained - sum(parameter.numel() for parameter in model.encoder.heads.parameters())


def table() -> str:
    """The comparison in Markdown."""
    titles = ("", "size", "published", "formula", "difference", "this code", "parameters: published, ours")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in published_rows():
        found, (height, width) = compare(row), row.size
        lines.append(
            f"| {row.name} | {height}x{width} | {row.giga:.1f} | {found.authors:.2f} | {found.difference:+.2f}% "
            f"| {found.ours:.2f} | {row.millions:.1f} M, {found.millions:.2f} M |"
        )
    return "\n".join(lines)


def needless_table(config: ModelConfig, height: int, width: int) -> str:
    """Table in Markdown of what the authors' code runs beyond this one on an image of this size (pixels)."""
    cost = model_cost(config, height, width)
    found = {**needless(config, cost), "the encoder's auxiliary heads": auxiliary_heads(config, cost)}
    beyond = sum(work.total for work in found.values())
    whole = cost.whole.total + beyond
    lines = ["| the authors' code | 10^9 operations | here |", "|---|---|---|"]
    for name, here in _INSTEAD.items():
        if name in found:
            lines.append(f"| {name} | {found[name].total / _GIGA:.2f} | {here} |")
    lines.append(f"| together | {beyond / _GIGA:.2f} | {beyond / whole:.1%} of {whole / _GIGA:.2f} |")
    return "\n".join(lines)


def needless(config: ModelConfig, cost: ModelCost) -> Mapping[str, Work]:
    """Operations that the authors' code runs at inference beyond ours for the same outputs, and their table counts."""
    queries, depth = query_count(config, cost.tokens), config.decoder_layers
    found = {"class heads of earlier decoder layers": head_cost(config, queries * (depth - 1), 0)}
    # Under refinement the decoder needs a box after every layer, and theirs are computed in it and again after it.
    repeated = depth if config.box_refinement else depth - 1
    found["boxes of decoder layers, again or unused"] = head_cost(config, 0, queries * repeated)
    if config.query_source == "top_k":
        found["boxes of tokens that become no query"] = head_cost(config, 0, cost.tokens - queries)
    if config.proposal_score == "class_agnostic":
        unused = cost.tokens * config.channels * (config.num_classes - 1)
        found["class logits that rank nothing"] = Work(products=unused)
    return {name: work.reused() for name, work in found.items()}


def auxiliary_heads(config: ModelConfig, cost: ModelCost) -> Work:
    """The encoder's auxiliary heads, which the authors' code runs at inference too, but their table leaves out."""
    heads = config.encoder_layers - 1 if config.encoder_auxiliary_loss else 0
    return (head_cost(config, cost.kept, cost.kept) * heads).reused()


def _family(backbone: BackboneName) -> dict[str, ModelConfig]:
    base = ModelConfig(backbone=BackboneConfig(name=backbone))
    dense = replace(base, keep_ratio=1.0, encoder_auxiliary_loss=False)
    plain = replace(dense, query_source="learned", box_refinement=False, shared_heads=True)
    sparse = {f"Sparse {ratio:.0%}": replace(base, keep_ratio=ratio) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)}
    return {"Deformable": plain, "Deformable, top-k and refinement": dense} | sparse
