"""A sheet: one large picture with facts under it at the left, rows of small ones at the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparse_detr.visualize.panel import shorten
from sparse_detr.visualize.style import Colour, Picture, font_of

_INK: Colour = (31, 41, 51)
_FAINT: Colour = (96, 108, 122)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Text of a sheet."""

    title: str
    lines: tuple[str, ...]
    """Sentences under the large picture."""
    legend: tuple[tuple[Colour, str], ...] = ()
    """Colours and what they mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A row of pictures under a heading."""

    heading: str
    tiles: Sequence[Picture]
    captions: Sequence[str]
    """One for each tile."""


def draw_sheet(
    large: Picture, facts: Facts, sections: Sequence[Section], *, tile: tuple[int, int], gap: int = 14
) -> Picture:
    """The title over everything, the large picture and the facts at the left, the sections at the right, on white.

    Args:
        tile: (width, height) in pixels of every small picture.
        gap: pixels between pictures.
    """
    text = font_of(max(13, round(large.shape[1] / 36)))
    small = font_of(max(12, round(tile[0] / 17)))
    title = font_of(round(text.size * 1.5))
    margin, top = round(1.5 * gap), round(1.5 * gap + title.size * 1.9)
    row_height = round(text.size * 1.9 + tile[1] + small.size * 2.0)
    lines = [line for sentence in facts.lines for line in _wrapped(sentence, text, large.shape[1])]
    entries = len(lines) + len(facts.legend)
    left_height = large.shape[0] + gap + round(entries * text.size * 1.6)
    columns = max((len(section.tiles) for section in sections), default=0)
    width = 2 * margin + large.shape[1] + (columns * (tile[0] + gap) + gap if columns else 0)
    height = top + max(left_height, len(sections) * row_height) + margin
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), shorten(facts.title, title, width - 2 * margin), fill=_INK, font=title)
    first = round(text.size * 1.9) if sections else 0  # the large picture's top stands level with the first tiles'
    sheet.paste(Image.fromarray(large), (margin, top + first))
    _draw_facts(draw, lines, facts.legend, (margin, top + first + large.shape[0] + gap), text)
    x = margin + large.shape[1] + 2 * gap
    for number, section in enumerate(sections):
        _draw_section(sheet, draw, section, (x, top + number * row_height), (tile, gap), (text, small))
    return np.asarray(sheet)


def _draw_facts(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    legend: Sequence[tuple[Colour, str]],
    place: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    x, y = place
    for line in lines:
        draw.text((x, y), line, fill=_INK, font=font)
        y += round(font.size * 1.6)
    side = round(font.size * 0.9)
    for colour, meaning in legend:
        draw.rectangle((x, y + font.size * 0.15, x + side, y + font.size * 0.15 + side), fill=colour)
        draw.text((x + 1.6 * side, y), meaning, fill=_INK, font=font)
        y += round(font.size * 1.6)


def _draw_section(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    section: Section,
    place: tuple[int, int],
    grid: tuple[tuple[int, int], int],
    fonts: tuple[ImageFont.FreeTypeFont, ImageFont.FreeTypeFont],
) -> None:
    (x, y), (tile, gap), (text, small) = place, grid, fonts
    room = len(section.tiles) * (tile[0] + gap) - gap
    draw.text((x, y + text.size * 0.3), shorten(section.heading, text, room), fill=_INK, font=text)
    y += round(text.size * 1.9)
    for picture, caption in zip(section.tiles, section.captions, strict=True):
        sheet.paste(Image.fromarray(picture), (x, y))
        middle = (x + tile[0] / 2, y + tile[1] + small.size * 0.85)
        draw.text(middle, shorten(caption, small, tile[0]), fill=_FAINT, font=small, anchor="mm")
        x += tile[0] + gap


def _wrapped(sentence: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in sentence.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
