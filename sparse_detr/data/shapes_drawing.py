"""Drawing of the *shapes* data set: outlines, textures, occlusion, anti-aliasing.

A picture is composed on an owner map of four times the resolution, which says for every small pixel which
object is on top. The share of small pixels that an object owns is its opacity in the picture, and the extent
of what it owns is its box: pixels and boxes cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw

SUPERSAMPLING = 4
"""Small pixels a side of a pixel; boxes are exact to one of them."""

SHAPE_NAMES = ("circle", "ring", "square", "star", "triangle")
"""Kinds that `outline` can draw; a circle may be a little elliptic, a square a little oblong."""

_CONTRAST = 80.0
"""Least distance in RGB (of at most 441) of an object's colour from what is behind it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stamp:
    """The mask of one object, cut to the picture."""

    mask: UInt8[np.ndarray, "h w"]
    """Small pixels: 0 nothing, 1 fill, 2 rim."""
    top: int
    left: int
    """Whole pixels of the picture; height and width of the mask are whole pixels too."""
    full_area: int
    """Small pixels of the whole object, with what is outside of the picture."""

    @property
    def region(self) -> tuple[slice, slice]:
        """Its rows and columns on the owner map."""
        rows, columns = self.mask.shape
        y, x = self.top * SUPERSAMPLING, self.left * SUPERSAMPLING
        return slice(y, y + rows), slice(x, x + columns)

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and columns in the picture."""
        rows, columns = (length // SUPERSAMPLING for length in self.mask.shape)
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)


def outline(name: str, rng: np.random.Generator, lean: float) -> Float[np.ndarray, "points 2"]:
    """The outline of a shape, up to `lean` degrees off the upright; its box's longer side is 1, the centre near 0."""
    count, inner = {
        "circle": (64, 1.0),
        "ring": (64, 1.0),
        "square": (4, 1.0),
        "star": (10, 0.45),
        "triangle": (3, 1.0),
    }[name]
    angle = np.arange(count) * (2 * np.pi / count)
    radius = np.where(np.arange(count) % 2 == 1, inner, 1.0)
    turn = -np.pi / 2 + np.radians(rng.uniform(-lean, lean))
    points = np.stack((np.cos(angle), np.sin(angle)), axis=-1) * radius[:, None]
    if name == "square":
        points = points @ _rotation(np.pi / 4)
    turned: np.ndarray = (points * (1.0, rng.uniform(0.8, 1.0))) @ _rotation(turn)
    return turned / float(np.ptp(turned, axis=0).max())


def stamp(
    name: str, centre: tuple[float, float], side: float, size: int, rng: np.random.Generator, lean: float = 180.0
) -> Stamp | None:
    """Draw one object.

    Args:
        name: one of SHAPE_NAMES.
        centre: (x, y), pixels of the picture.
        side: the longer side of its box, pixels.
        size: height and width of the picture, pixels.
        rng: where chance comes from.
        lean: how far it may be turned from the upright, either way, degrees.

    Returns:
        The stamp; None where nothing of the object is in the picture.
    """
    points = outline(name, rng, lean) * side
    low = np.floor(points.min(axis=0) + centre).astype(int) - 1
    high = np.ceil(points.max(axis=0) + centre).astype(int) + 1
    width, height = (int(v) * SUPERSAMPLING for v in high - low)
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    offset = np.asarray(centre) - low
    rim = rng.uniform(0.08, 0.2) if rng.random() < 0.5 else 0.0
    _polygon(draw, points, offset, 2 if rim else 1)
    if rim:
        _polygon(draw, points * (1 - rim), offset, 1)
    if name == "ring":
        _polygon(draw, points * rng.uniform(0.4, 0.6), offset, 0)
    mask = np.asarray(picture)
    x0, y0 = (int(v) for v in np.clip(low, 0, size))
    x1, y1 = (int(v) for v in np.clip(high, 0, size))
    if x1 <= x0 or y1 <= y0:
        return None
    rows = slice((y0 - low[1]) * SUPERSAMPLING, (y1 - low[1]) * SUPERSAMPLING)
    columns = slice((x0 - low[0]) * SUPERSAMPLING, (x1 - low[0]) * SUPERSAMPLING)
    return Stamp(mask=mask[rows, columns], top=y0, left=x0, full_area=int(np.count_nonzero(mask)))


def paint(
    background: Float32[np.ndarray, "size size 3"],
    owner: UInt8[np.ndarray, "big big"],
    stamps: list[Stamp],
    rng: np.random.Generator,
    plain: float = 0.0,
) -> Float32[np.ndarray, "size size 3"]:
    """Lay coloured objects over a background, anti-aliased.

    Args:
        background: RGB, 0..255.
        owner: 0 where the background is seen, 2i + 1 the fill and 2i + 2 the rim of object i.
        stamps: the objects; only their places are used.
        rng: where colours and textures come from.
        plain: probability that an object has one colour instead of a texture.
    """
    picture: np.ndarray = background * _coverage(owner == 0)
    for index, placed in enumerate(stamps):
        rows, columns = placed.pixels
        behind = background[rows, columns].mean(axis=(0, 1))
        own = owner[placed.region]
        fill = texture(rng, own.shape[0] // SUPERSAMPLING, own.shape[1] // SUPERSAMPLING, away_from=behind)
        if rng.random() < plain:
            fill[:] = fill[0, 0]
        picture[rows, columns] += fill * _coverage(own == 2 * index + 1)
        rim = own == 2 * index + 2
        if rim.any():
            picture[rows, columns] += _colour(rng, away_from=fill.mean(axis=(0, 1))) * _coverage(rim)
    return picture


def texture(
    rng: np.random.Generator, height: int, width: int, *, away_from: Float32[np.ndarray, " 3"] | None = None
) -> Float32[np.ndarray, "height width 3"]:
    """A patch of one of six kinds between two colours: plain, gradient, stripes, checks, clouds, grain."""
    first = _colour(rng, away_from=away_from)
    second = _near(rng, first, 90.0) if away_from is not None else _near(rng, first, 140.0)
    if away_from is not None and np.linalg.norm(second - away_from) < _CONTRAST / 2:
        second = first
    mixed: np.ndarray = first + (second - first) * _pattern(rng, height, width)[..., None]
    return mixed


def clutter(picture: Float32[np.ndarray, "size size 3"], count: int, rng: np.random.Generator) -> Image.Image:
    """Add lines, arcs and specks that belong to no class."""
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    size = image.width
    for _ in range(count):
        x, y, u, v = (float(value) for value in rng.uniform(-0.1 * size, 1.1 * size, 4))
        colour = tuple(int(value) for value in _colour(rng))
        kind = int(rng.integers(3))
        if kind == 0:
            draw.line((x, y, u, v), fill=colour, width=int(rng.integers(1, 3)))
        elif kind == 1:
            start = float(rng.uniform(0, 360))
            box = (min(x, u), min(y, v), max(x, u), max(y, v))
            draw.arc(box, start, start + float(rng.uniform(30, 110)), fill=colour, width=int(rng.integers(1, 3)))
        else:
            reach = float(rng.uniform(0.004, 0.015)) * size
            draw.rectangle((x - reach, y - reach, x + reach, y + reach), fill=colour)
    return image


def finish(picture: Float32[np.ndarray, "size size 3"], noise: float, rng: np.random.Generator) -> Image.Image:
    """Uneven light and sensor noise (standard deviation up to `noise`), then 8 bits."""
    light = 1.0 + rng.uniform(-0.3, 0.1) * _slope(rng, *picture.shape[:2])
    grain = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0, noise))
    return Image.fromarray(np.clip(picture * light[..., None] + grain, 0, 255).astype(np.uint8))


def _pattern(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "height width"]:
    kind = int(rng.integers(6))
    if kind == 0:
        return np.zeros((height, width), np.float32)
    if kind == 1:
        return _slope(rng, height, width)
    if kind == 2:
        wave = _ramp(rng, height, width) * (2 * np.pi / rng.uniform(4, 16)) + rng.uniform(0, 6)
        return np.clip(0.5 + np.sin(wave) * rng.uniform(0.5, 2), 0, 1).astype(np.float32)
    if kind == 3:
        cell = rng.uniform(3, 12)
        rows, columns = np.floor(np.arange(height) / cell), np.floor(np.arange(width) / cell)
        return ((rows[:, None] + columns) % 2).astype(np.float32)
    if kind == 4:
        step = rng.uniform(6, 24)
        coarse = rng.random((int(height / step) + 2, int(width / step) + 2), dtype=np.float32)
        return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return rng.random((height, width), dtype=np.float32)


def _ramp(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "height width"]:
    """Pixels along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.arange(height) * np.sin(angle), np.arange(width) * np.cos(angle)
    ramp: np.ndarray = (rows[:, None] + columns).astype(np.float32)
    return ramp


def _slope(rng: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "height width"]:
    """From 0 to 1 along a random direction."""
    ramp = _ramp(rng, height, width)
    slope: np.ndarray = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
    return slope


def _colour(
    rng: np.random.Generator, *, away_from: Float32[np.ndarray, " 3"] | None = None
) -> Float32[np.ndarray, " 3"]:
    colours: np.ndarray = rng.uniform(10, 245, (16, 3)).astype(np.float32)
    chosen = 0
    if away_from is not None:
        distance = np.linalg.norm(colours - away_from, axis=-1)
        chosen = int(np.argmax(distance >= min(_CONTRAST, distance.max())))
    picked: np.ndarray = colours[chosen]
    return picked


def _near(rng: np.random.Generator, colour: Float32[np.ndarray, " 3"], reach: float) -> Float32[np.ndarray, " 3"]:
    return np.clip(colour + rng.uniform(-reach, reach, 3), 0, 255).astype(np.float32)


def _coverage(small: np.ndarray) -> Float32[np.ndarray, "height width 1"]:
    """Share of the small pixels of each pixel that are set."""
    reduced = Image.fromarray(small.astype(np.uint8) * 255).reduce(SUPERSAMPLING)
    return np.asarray(reduced, dtype=np.float32)[..., None] / np.float32(255)


def _polygon(
    draw: ImageDraw.ImageDraw, points: Float[np.ndarray, "n 2"], offset: Float[np.ndarray, " 2"], value: int
) -> None:
    # Pillow colours the pixels that a vertex falls into: half a small pixel less makes extents exact.
    corners = (points + offset) * SUPERSAMPLING - 0.5
    draw.polygon([(float(x), float(y)) for x, y in corners], fill=value)


def _rotation(angle: float) -> Float[np.ndarray, "2 2"]:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
