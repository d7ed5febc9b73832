"""Pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparse_detr.visualize.style import Picture, font_of


def panel(
    pictures: Sequence[Picture],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    height: int = 360,
    gap: int = 12,
) -> Picture:
    """Pictures side by side on white, all of one height, each with its caption below.

    Args:
        captions: one for each picture, or None.
        columns: pictures in a row; None puts all in one row.
        height: of every picture, in pixels.
        gap: pixels between pictures and around them.

    Raises:
        ValueError: no picture, or not one caption for each.
    """
    if not pictures or (captions is not None and len(captions) != len(pictures)):
        raise ValueError(
            f"pictures: {len(pictures)}, captions: {0 if captions is None else len(captions)}; "
            "give at least one picture, and one caption for each"
        )
    texts = [""] * len(pictures) if captions is None else list(captions)
    font = font_of(max(12, round(height / 22)))
    text_height = 0 if captions is None else round(font.size * 1.9)
    tiles = [Image.fromarray(p) for p in pictures]
    tiles = [t.resize((max(1, round(t.width * height / t.height)), height), Image.Resampling.LANCZOS) for t in tiles]
    per_row = columns or len(tiles)
    rows = [list(zip(tiles, texts, strict=True))[i : i + per_row] for i in range(0, len(tiles), per_row)]
    width = max(sum(tile.width + gap for tile, _ in row) for row in rows) + gap
    sheet = Image.new("RGB", (width, len(rows) * (height + text_height + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        x, y = gap, gap + number * (height + text_height + gap)
        for tile, text in row:
            sheet.paste(tile, (x, y))
            middle = (x + tile.width / 2, y + height + text_height / 2)
            draw.text(middle, shorten(text, font, tile.width), fill=(40, 44, 52), font=font, anchor="mm")
            x += tile.width + gap
    return np.asarray(sheet)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with dots where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
