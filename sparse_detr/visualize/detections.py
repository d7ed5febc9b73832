"""Detections and ground truth as boxes with tags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sparse_detr.boxes import cxcywh_to_xyxy
from sparse_detr.records import Detections, Targets
from sparse_detr.visualize.style import Colour, Picture, class_colour, enlarge, font_of

Box = tuple[float, float, float, float]

_TRUTH_COLOUR: Colour = (255, 255, 255)


def draw_detections(
    image: Picture,
    detections: Detections,
    names: Sequence[str],
    *,
    threshold: float = 0.5,
    truth: Targets | None = None,
    short_side: int = 480,
) -> Picture:
    """Boxes in their class's colour with a tag of name and score; the ground truth, if given, dashed in white.

    Args:
        image: the original image, in whose pixels the detections are.
        names: class names by label.
        threshold: detections of a lower score are left out.
        short_side: small images are scaled up to it first, so that the tags can be read.
    """
    canvas = Image.fromarray(enlarge(image, short_side)).copy()
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(min(canvas.size) / 170))
    if truth is not None:
        for box in cxcywh_to_xyxy(truth.boxes.detach().cpu()).tolist():
            _dashed_rectangle(draw, _scaled(box, (float(canvas.width), float(canvas.height))), line)
    factor = canvas.width / image.shape[1], canvas.height / image.shape[0]
    found = [
        (_scaled(box, factor), label, score)
        for box, label, score in zip(
            detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True
        )
        if score >= threshold
    ]
    for box, label, _ in reversed(found):  # the best on top
        draw.rectangle(_inside(box, canvas.size), outline=class_colour(label), width=line)
    _draw_tags(draw, [(box, label, f"{names[label]} {score:.2f}") for box, label, score in found], canvas.size)
    return np.asarray(canvas)


def _scaled(box: Sequence[float], factor: tuple[float, float]) -> Box:
    return box[0] * factor[0], box[1] * factor[1], box[2] * factor[0], box[3] * factor[1]


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """The box cut at the border, with corners in order, so that its lines can be seen."""
    x0, x1 = sorted((min(max(box[0], 0.0), size[0] - 1.0), min(max(box[2], 0.0), size[0] - 1.0)))
    y0, y1 = sorted((min(max(box[1], 0.0), size[1] - 1.0), min(max(box[3], 0.0), size[1] - 1.0)))
    return x0, y0, x1, y1


def _draw_tags(draw: ImageDraw.ImageDraw, tags: Sequence[tuple[Box, int, str]], size: tuple[int, int]) -> None:
    font = font_of(max(12, round(min(size) / 30)))
    places: list[Box] = []
    for box, _, text in tags:  # the best choose their place first
        width = font.getlength(text) + 0.6 * font.size
        places.append(_free_place(_inside(box, size), width, font.size * 1.35, size, places))
    for place, (_, label, text) in reversed(list(zip(places, tags, strict=True))):  # and lie on top
        colour = class_colour(label)
        draw.rounded_rectangle(place, radius=font.size * 0.25, fill=colour)
        luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        ink = (20, 22, 26) if luminance > 140 else (255, 255, 255)
        middle = ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
        draw.text(middle, text, fill=ink, font=font, anchor="mm")


def _free_place(box: Box, width: float, height: float, size: tuple[int, int], placed: Sequence[Box]) -> Box:
    """Above the box, below it, or inside at one of its edges: the first place that hides no other tag."""
    x0, y0, x1, y1 = box
    corners = [(x0, y0 - height), (x0, y1), (x0, y0), (x1 - width, y0 - height), (x1 - width, y1), (x0, y1 - height)]
    places = []
    for x, y in corners:
        left = min(max(x, 0.0), max(size[0] - 1 - width, 0.0))
        top = min(max(y, 0.0), max(size[1] - 1 - height, 0.0))
        places.append((left, top, left + width, top + height))
    for place in places:
        if not any(a[0] < place[2] and place[0] < a[2] and a[1] < place[3] and place[1] < a[3] for a in placed):
            return place
    return places[0]


def _dashed_rectangle(draw: ImageDraw.ImageDraw, box: Box, line: int) -> None:
    x0, y0, x1, y1 = box
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        dashes = max(1, round(max(abs(bx - ax), abs(by - ay)) / (6 * line)))
        for colour, width in (((0, 0, 0), line + 2), (_TRUTH_COLOUR, line)):
            for dash in range(dashes):
                start, end = dash / dashes, (dash + 0.55) / dashes
                points = [(ax + (bx - ax) * t, ay + (by - ay) * t) for t in (start, end)]
                draw.line(points, fill=colour, width=width)
