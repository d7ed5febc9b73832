"""Style of all pictures: their type, the colours of classes, the font."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import UInt8
from PIL import Image, ImageFont

Picture = UInt8[np.ndarray, "_H _W 3"]
"""RGB; the underscores let pictures of different sizes meet in one call."""
Colour = tuple[int, int, int]
Array = npt.NDArray[Any]

_FIRST_COLOURS: tuple[Colour, ...] = (
    (255, 99, 72), (46, 160, 255), (72, 199, 116), (255, 190, 41), (171, 108, 255),
    (255, 110, 180), (26, 200, 195), (176, 215, 50), (255, 143, 46), (120, 136, 255),
)  # fmt: skip


def class_colour(label: int) -> Colour:
    """A bright colour for a class: hand-picked for the first ten, then spread by the golden ratio."""
    if label < len(_FIRST_COLOURS):
        return _FIRST_COLOURS[label]
    hue = (label * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65 + 0.1 * (label % 3), 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def enlarge(image: Picture, short_side: int) -> Picture:
    """The image scaled up so that its short side has at least `short_side` pixels; larger ones stay as they are."""
    height, width = image.shape[:2]
    factor = short_side / min(height, width)
    if factor <= 1:
        return image
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font at `size` pixels: the same on every machine."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels carry FreeType
    return font
