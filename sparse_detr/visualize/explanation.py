"""One picture of why a model finds what it finds: detections, saliency, kept tokens, the decoder's attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sparse_detr.decoder_attention import attention_share, decoder_attention_map
from sparse_detr.records import Detections, Output, Shapes, Targets
from sparse_detr.visualize.detections import draw_detections
from sparse_detr.visualize.sheet import Facts, Section, draw_sheet
from sparse_detr.visualize.style import Picture
from sparse_detr.visualize.tokens import AGREEMENT_COLOURS, agreement_overlay, kept_tokens_overlay, saliency_overlay

GAP = 14
NO_ATTENTION = "none at all"
"""Instead of the share of a level's attention, where it got none."""
_LEGEND = tuple(zip(AGREEMENT_COLOURS, ("kept and attended", "kept only", "attended only: missed"), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReport:
    """Tokens of one image, alone in its batch, as the model treated them."""

    shapes: Shapes
    saliency: Float[Tensor, " T"] | None = None
    """None for a dense encoder."""
    kept: Int[Tensor, " K"] | None = None
    """Tokens that the encoder updated; None for a dense encoder, which updates all."""
    dam: Float[Tensor, " T"] | None = None
    """Decoder attention map, shifted by half a token as the authors have it; None with full attention."""
    attended: Int[Tensor, " K"] | None = None
    """As many tokens as are kept: those with the most attention; None without one of the two."""
    shares: tuple[float, ...] | None = None
    """Share of the attention that falls on kept tokens, over all levels and on each; NaN on a level without any."""

    @classmethod
    def of(cls, output: Output) -> TokenReport:
        """Of the output of one image without padding, made with `with_auxiliary=True`.

        Raises:
            ValueError: the output has several images.
        """
        if len(output.logits) != 1:
            raise ValueError(f"output: it is of {len(output.logits)} images; give the model one at a time")
        selection, attention = output.selection, output.decoder_attention
        saliency = kept = dam = attended = shares = None
        if selection is not None:
            saliency, kept = selection.saliency[0].float(), selection.kept[0, : int(selection.counts[0])]
        if attention is not None:
            dam = decoder_attention_map(attention, output.shapes)[0]
        if kept is not None and dam is not None:
            attended = dam.topk(len(kept)).indices
            shares = tuple(attention_share(dam[None], kept[None], output.shapes)[0].tolist())
        return cls(shapes=output.shapes, saliency=saliency, kept=kept, dam=dam, attended=attended, shares=shares)

    @property
    def tokens(self) -> int:
        """T: tokens of the image over all levels."""
        return sum(h * w for h, w in self.shapes)

    @property
    def missing(self) -> str | None:
        """Why parts of the picture are not there; None where it is complete."""
        if self.dam is None:
            return "Full attention: every token looks at every token, so there is no saliency and no attention map."
        if self.kept is None:
            return "Dense encoder: every token is updated, so there is no saliency and nothing to compare with."
        return None

    def on_levels(self, chosen: Int[Tensor, " N"]) -> tuple[int, ...]:
        """Number of chosen tokens on each level."""
        ends = np.cumsum([h * w for h, w in self.shapes])
        level = np.searchsorted(ends, chosen.cpu().numpy(), side="right")
        return tuple(np.bincount(level, minlength=len(ends)).tolist())


def draw_explanation(
    image: Picture,
    report: TokenReport,
    detections: Detections,
    names: Sequence[str],
    *,
    title: str,
    threshold: float = 0.4,
    truth: Targets | None = None,
    tile: int = 250,
) -> Picture:
    """Detections at the left; at the right one row each for saliency, kept tokens, attention and their agreement,
    over all levels and on each one.

    Rows that the model has nothing for are left out, and the picture says why.

    Args:
        image: the original image, in whose pixels the detections are.
        names: class names by label.
        title: first line of the picture.
        threshold: detections of a lower score are left out.
        truth: drawn dashed among the detections.
        tile: pixels of the side of a square tile; others have the same area.
    """
    height, width = image.shape[:2]
    # Very long images get no thinner than 1 to 3 in area's terms: captions need room.
    side = min(max(math.sqrt(width / height), 0.6), 1.8)
    size = (round(tile * side), max(1, round(tile * side * height / width)))
    small = _resized(image, size)
    large_size = (round(2.4 * size[0]), max(1, round(2.4 * size[1])))
    factor = detections.boxes.new_tensor([large_size[0] / width, large_size[1] / height] * 2)
    boxes = draw_detections(
        _resized(image, large_size),
        replace(detections, boxes=detections.boxes * factor),
        names,
        threshold=threshold,
        truth=truth,
        short_side=1,
    )
    found = int((detections.scores >= threshold).sum())
    facts = Facts(
        title=title,
        lines=_facts(report, found, threshold, truth is not None),
        legend=_LEGEND if report.attended is not None else (),
    )
    return draw_sheet(boxes, facts, _sections(small, report), tile=size, gap=GAP)


def _facts(report: TokenReport, found: int, threshold: float, with_truth: bool) -> tuple[str, ...]:
    noun = "object" if found == 1 else "objects"
    lines = [f"{found} {noun} with a score of {threshold:g} or more" + ("; the truth dashed." if with_truth else ".")]
    if report.kept is not None:
        share = len(report.kept) / report.tokens
        lines.append(f"The encoder updates {len(report.kept)} of {report.tokens} tokens ({share:.0%}).")
    if report.shares is not None:
        lines.append(f"{_percent(report.shares[0])} of the decoder's attention falls on them.")
    return (*lines, report.missing) if report.missing else tuple(lines)


def _sections(image: Picture, report: TokenReport) -> list[Section]:
    sections = []
    if report.saliency is not None:
        sections.append(_saliency(image, report, report.saliency))
    if report.kept is not None:
        sections.append(_kept(image, report, report.kept))
    if report.dam is not None:
        sections.append(_attention(image, report, report.dam))
    if report.kept is not None and report.attended is not None and report.shares is not None:
        sections.append(_agreement(image, report, report.kept, report.attended, report.shares))
    return sections


def _levels(report: TokenReport) -> list[int | None]:
    return [None, *range(len(report.shapes))]


def _saliency(image: Picture, report: TokenReport, saliency: Tensor) -> Section:
    captions = ["all levels", *(f"level {n}: {h} x {w} tokens" for n, (h, w) in enumerate(report.shapes))]
    tiles = [saliency_overlay(image, saliency, report.shapes, level=level) for level in _levels(report)]
    return Section(
        heading="Saliency: how much a token deserves an update (bright is high; one scale for all levels)",
        tiles=tiles,
        captions=captions,
    )


def _kept(image: Picture, report: TokenReport, kept: Tensor) -> Section:
    counts = [len(kept), *report.on_levels(kept)]
    sizes = [report.tokens, *(h * w for h, w in report.shapes)]
    tiles = [kept_tokens_overlay(image, kept, report.shapes, level=level) for level in _levels(report)]
    captions = [f"{count} of {size} kept" for count, size in zip(counts, sizes, strict=True)]
    return Section(heading="Kept tokens: those that the encoder updates", tiles=tiles, captions=captions)


def _attention(image: Picture, report: TokenReport, dam: Tensor) -> Section:
    parts = dam.split_with_sizes([h * w for h, w in report.shapes])
    total = float(dam.sum())
    shares = [float(part.sum()) / total if total else 0.0 for part in parts]
    # A root, because coarse tokens get many times the attention of fine ones, and all levels share one scale.
    tiles = [saliency_overlay(image, dam.sqrt(), report.shapes, level=level) for level in _levels(report)]
    captions = ["all levels", *(f"level {n}: {share:.0%} of all" for n, share in enumerate(shares))]
    return Section(
        heading="Decoder attention map: where the decoder looks (bright is much; one scale for all levels)",
        tiles=tiles,
        captions=captions,
    )


def _agreement(image: Picture, report: TokenReport, kept: Tensor, attended: Tensor, shares: Sequence[float]) -> Section:
    tiles = [agreement_overlay(image, kept, attended, report.shapes, level=level) for level in _levels(report)]
    captions = [f"attention on kept: {_percent(share)}" for share in shares]
    heading = f"Agreement: the {len(kept)} kept tokens against the {len(attended)} most attended ones"
    return Section(heading=heading, tiles=tiles, captions=captions)


def _percent(share: float) -> str:
    return NO_ATTENTION if math.isnan(share) else f"{share:.0%}"


def _resized(image: Picture, size: tuple[int, int]) -> Picture:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
