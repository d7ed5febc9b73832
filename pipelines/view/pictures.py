"""Pictures of the page: images fetched again, as small JPEGs, and their boxes to be laid over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.detect.images import Locate
from pipelines.detect.manifest import places
from pipelines.view.tally import Row
from sparse_detr.data.decode import decode_image
from sparse_detr.errors import ImageError, StorageError
from sparse_detr.visualize import class_colour

SIDE = 512
"""Longest side of a picture, pixels: some 40 kB as a JPEG, and sharp at the size of a tile on any screen."""
_SHOWN_WIDTH, _SHOWN_HEIGHT = 260, 220
"""Pixels of a tile, for the size of text; the page's style has them too."""
_TEXT = 11.0
_FETCHERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box over a picture, in pixels of the image."""

    label: int
    name: str
    score: float
    x: float
    y: float
    width: float
    height: float
    colour: str
    tag: tuple[float, float, str]
    """(x, y) and anchor of the text with name and score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An image of the page."""

    uri: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    jpeg: str | None
    """Data URI; None where the image cannot be read any more."""
    note: str = ""
    """Why not; or in what it differs from the image that was looked at."""
    text_size: float
    """Of tags, in pixels of the image."""

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return self.uri.rpartition("/")[2]


def show(rows: Sequence[Row]) -> list[Shown]:
    """Fetch the images of rows and make them ready for the page; one that is gone is noted and disturbs no other."""
    place = places("")
    with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch") as pool:
        return list(pool.map(lambda row: _shown(place, row), rows))


def _shown(place: Locate, row: Row) -> Shown:
    uri, width, height = row["uri"], row["width"], row["height"]
    size = _TEXT / min(_SHOWN_WIDTH / width, _SHOWN_HEIGHT / height)
    boxes = tuple(_box(found, width, size) for found in row["detections"])
    jpeg, note = None, ""
    try:
        pixels = decode_image(place(uri).read_bytes(), name=uri)
    except (StorageError, ImageError) as error:
        note = f"cannot be read any more: {error}"
    else:
        if pixels.shape[:2] == (height, width):
            jpeg = _jpeg(pixels)
        else:
            now = f"{pixels.shape[1]} x {pixels.shape[0]}"
            note = f"is another image now, of {now} in place of {width} x {height} pixels"
    return Shown(uri=uri, width=width, height=height, boxes=boxes, jpeg=jpeg, note=note, text_size=size)


def _box(found: Row, width: int, size: float) -> Box:
    x0, y0, x1, y1 = found["box"]
    red, green, blue = class_colour(found["label"])
    right = x0 > 0.6 * width
    return Box(
        label=found["label"],
        name=found["name"],
        score=found["score"],
        x=x0,
        y=y0,
        width=max(x1 - x0, 0.0),
        height=max(y1 - y0, 0.0),
        colour=f"#{red:02x}{green:02x}{blue:02x}",
        tag=(x1 if right else x0, max(y0 - 0.3 * size, size), "end" if right else "start"),
    )


def _jpeg(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
