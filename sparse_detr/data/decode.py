"""Image files to RGB pixels: every image either becomes what a viewer would show, or an error that says why not."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from sparse_detr.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are read. Not all that Pillow can: some of its other readers start programs or fetch files."""

_ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the turn that brings the picture upright.

`PIL.ImageOps.exif_transpose` has the same table (a test compares them), but then rewrites the whole EXIF block, to save
it with the picture. It fails where another tag of the block has a damaged type: for 2 of 100 blocks with one to four
wrong bytes, whose pictures every viewer shows.
"""


def decode_image(data: bytes, *, name: str, max_pixels: int = 100_000_000) -> UInt8[np.ndarray, "H W 3"]:
    """Decode one image as 8-bit RGB, upright.

    The first frame counts. EXIF rotation is applied; 16-bit values are scaled (65535 becomes 255), not clipped;
    transparent parts are laid on white; CMYK and palettes are converted. Colour profiles are not applied.

    Args:
        data: the file.
        name: path or URI for messages.
        max_pixels: an image with more is refused from its header, before any pixel is decoded.

    Raises:
        ImageError: empty, no known image, cut short or damaged, too many pixels, or of a kind without agreed colours
            (floating point, more than 16 bits).
    """
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes); replace it or take it out of the data set")
    try:
        with _without_warnings(), _opened(data, name, max_pixels) as image:
            image.load()
            colours = _rgb(image, name)
            turn = _TURNS.get(_orientation(image))
            pixels = np.array(colours if turn is None else colours.transpose(turn))
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Damaged files make Pillow's readers fail in any way: OSError, SyntaxError, struct.error, zlib.error, ...
        raise ImageError(
            f"{name}: cut short or damaged ({len(data)} bytes; {type(error).__name__}: {error}); replace it"
        ) from error
    return pixels


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of odd metadata and from 89 million pixels: the first is harmless, for the second is our limit.

    The filter names Pillow's modules alone, for another thread may briefly see it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _opened(data: bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image that can be read ({len(data)} bytes, starting with {data[:12]!r}); "
            f"give one of {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused before decoding ({error}); the limit is {max_pixels} pixels") from error
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        image.close()
        raise ImageError(f"{name}: refused before decoding: {size} is more than {max_pixels} pixels; scale it down")
    return image


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bits(image, name)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no agreed range; convert it to 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name}: integer pixels from {low} to {high} have no agreed range; convert it to 8 or 16 bits"
        )
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return grey.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where none is stated or the EXIF block cannot be read."""
    try:
        stated = image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, KeyError, OSError, struct.error):
        # Cameras and editors write broken blocks around sound pictures; every viewer shows these as they are.
        return 1
    return stated if isinstance(stated, int) else 1
