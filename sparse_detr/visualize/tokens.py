"""Saliency, kept tokens and where these agree with the decoder's attention, over the image."""

from __future__ import annotations

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sparse_detr.records import Shapes
from sparse_detr.visualize.style import Array, Colour, Picture

AGREEMENT_COLOURS: tuple[Colour, Colour, Colour] = (0, 190, 140), (60, 150, 255), (255, 84, 60)
"""Of tokens that are kept and attended, kept only, attended only."""

_EDGE_COLOUR: Colour = (255, 214, 64)
_HEAT, _AGREEMENT = 0.65, 0.6
"""Weight of the colours against the greyed image: what is under them must still be seen."""


def saliency_overlay(
    image: Picture,
    saliency: Float[Tensor, " T"],
    shapes: Shapes,
    *,
    level: int | None = None,
) -> Picture:
    """Saliency (any scores of the tokens) as a heat map on the greyed image, dark to bright.

    The image was alone in its batch, so that no token is padding.
    All levels share one scale, the image's 1st to 99.8th percentile, so that their pictures compare and a few
    extreme scores do not darken the rest.

    Args:
        level: draw this level alone; None draws the mean of all levels.
    """
    size = (image.shape[1], image.shape[0])
    scores = saliency.detach().float().cpu().numpy()
    maps = _cut_levels(scores, shapes)
    low, high = np.percentile(scores, (1.0, 99.8))
    chosen = maps if level is None else [maps[level]]
    heat = np.mean([_stretch(one, size, Image.Resampling.BILINEAR) for one in chosen], axis=0)
    heat = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
    colours = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    return _to_picture((1 - _HEAT) * _grey(image) + _HEAT * colours)


def kept_tokens_overlay(
    image: Picture,
    kept: Int[Tensor, " K"],
    shapes: Shapes,
    *,
    level: int | None = None,
) -> Picture:
    """The image bright where its tokens are kept, dim and grey elsewhere.

    One level shows its kept tokens with an outline. All levels together are the brighter the more of them keep the
    place.

    Args:
        kept: indices of the tokens that the encoder updates.
        level: draw this level alone; None draws all of them together.
    """
    size = (image.shape[1], image.shape[0])
    flags = np.zeros(sum(h * w for h, w in shapes), dtype=np.float32)
    flags[kept.detach().cpu().numpy()] = 1
    maps = _cut_levels(flags, shapes)
    chosen = maps if level is None else [maps[level]]
    bright = np.mean([_stretch(one, size, Image.Resampling.NEAREST) for one in chosen], axis=0)
    share = np.sqrt(bright)[..., None]
    picture = share * image + (1 - share) * 0.25 * _grey(image)
    if level is not None:
        picture[_edges(bright > 0.5, max(1, round(min(size) / 240)))] = _EDGE_COLOUR
    return _to_picture(picture)


def agreement_overlay(
    image: Picture,
    kept: Int[Tensor, " K"],
    attended: Int[Tensor, " N"],
    shapes: Shapes,
    *,
    level: int | None = None,
) -> Picture:
    """Kept tokens against those that the decoder looks at most, in AGREEMENT_COLOURS on the greyed image.

    All levels together mix the colours of the levels, the stronger the more levels have either at the place.

    Args:
        kept: indices of the tokens that the encoder updates.
        attended: indices of the tokens with the most attention.
        level: draw this level alone; None draws all of them together.
    """
    size = (image.shape[1], image.shape[0])
    flags = np.zeros((2, sum(h * w for h, w in shapes)), dtype=np.float32)
    flags[0, kept.detach().cpu().numpy()] = 1
    flags[1, attended.detach().cpu().numpy()] = 1
    classes = (flags[0] * flags[1], flags[0] * (1 - flags[1]), flags[1] * (1 - flags[0]))
    shares = []
    for one in classes:
        maps = _cut_levels(one, shapes)
        chosen = maps if level is None else [maps[level]]
        shares.append(np.mean([_stretch(m, size, Image.Resampling.NEAREST) for m in chosen], axis=0))
    parts = np.stack(shares, axis=-1)
    covered = parts.sum(-1, keepdims=True)
    colours = parts @ np.array(AGREEMENT_COLOURS) / np.maximum(covered, 1e-6)
    weight = _AGREEMENT * np.sqrt(covered)
    return _to_picture((1 - weight) * 0.75 * _grey(image) + weight * colours)


def _cut_levels(values: Array, shapes: Shapes) -> list[Array]:
    starts = np.cumsum([h * w for h, w in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(values, starts), shapes, strict=True)]


def _stretch(one: Array, size: tuple[int, int], resampling: Image.Resampling) -> Array:
    """A level's map scaled to `size` (width, height)."""
    return np.asarray(Image.fromarray(one.astype(np.float32)).resize(size, resampling))


def _edges(inside: Array, line: int) -> Array:
    """Pixels of the region within `line` pixels of its border."""
    padded = np.pad(inside, line, mode="edge")
    height, width = inside.shape
    core = inside.copy()
    for dy, dx in ((0, line), (2 * line, line), (line, 0), (line, 2 * line)):
        core &= padded[dy : dy + height, dx : dx + width]
    return np.asarray(inside & ~core)


def _grey(image: Picture) -> Array:
    return np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None]


def _to_picture(values: Array) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
