"""Every kind of image file, built for real, and every kind of broken one."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from sparse_detr.data.decode import FORMATS, decode_image
from sparse_detr.errors import ImageError

CORNERS = np.zeros((8, 12, 3), np.uint8)
CORNERS[:4, :6] = (250, 10, 20)
CORNERS[:4, 6:] = (10, 240, 30)
CORNERS[4:, :6] = (20, 30, 230)
CORNERS[4:, 6:] = (200, 200, 10)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png(width: int, height: int, *, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand from raw, filter-prefixed rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A sound PNG of 20,000 x 20,000 black pixels in a few ten thousand bytes."""
    row = b"\x00" + bytes(20_000 // 8)
    return png(20_000, 20_000, bits=1, colour=0, rows=row * 20_000)


@pytest.fixture
def photograph() -> bytes:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return encoded(coarse.resize((160, 120), Image.Resampling.BICUBIC), "JPEG", quality=90)


@pytest.mark.parametrize("form", [f for f in FORMATS if f not in ("JPEG", "GIF", "WEBP")])
def test_lossless_formats_give_the_exact_pixels(form: str) -> None:
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(CORNERS), form), name="a"), CORNERS)


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("GIF", {})])
def test_lossy_formats_give_nearly_the_pixels(form: str, options: dict[str, int]) -> None:
    large = CORNERS.repeat(8, 0).repeat(8, 1)
    pixels = decode_image(encoded(Image.fromarray(large), form, **options), name="a")
    assert np.abs(pixels.astype(int) - large)[16::32, 24::48].max() <= 12


def test_the_result_is_writable_rgb(photograph: bytes) -> None:
    pixels = decode_image(photograph, name="a.jpg")
    assert pixels.shape == (120, 160, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable


def test_grey_is_repeated_in_three_channels() -> None:
    grey = np.arange(0, 240, 20, dtype=np.uint8).reshape(3, 4)
    pixels = decode_image(encoded(Image.fromarray(grey), "PNG"), name="grey.png")
    np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=-1))


def test_one_bit_becomes_black_and_white() -> None:
    pixels = decode_image(png(2, 1, bits=1, colour=0, rows=b"\x00\x40"), name="bit.png")
    np.testing.assert_array_equal(pixels, [[[0] * 3, [255] * 3]])


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 256, 32768, 65407, 65535]], dtype=">u2")
    pixels = decode_image(png(7, 1, bits=16, colour=0, rows=b"\x00" + values.tobytes()), name="deep.png")
    np.testing.assert_array_equal(pixels[0, :, 0], np.round(values[0] / 65535 * 255))
    assert pixels[0, 3, 0] == 1
    assert pixels[0, 4, 0] == 128


def test_16_bit_tiff_is_scaled() -> None:
    values = np.array([[0, 1000, 40000, 65535]], dtype=np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values), "TIFF"), name="deep.tif")
    np.testing.assert_array_equal(pixels[0, :, 1], [0, 4, 156, 255])


def test_16_bit_colour_is_scaled() -> None:
    values = np.array([[65535, 32768, 0, 256, 512, 40000]], dtype=">u2")
    pixels = decode_image(png(2, 1, bits=16, colour=2, rows=b"\x00" + values.tobytes()), name="deep.png")
    expected = (values / 65535 * 255).reshape(1, 2, 3)
    assert np.abs(pixels - expected).max() <= 1


def test_32_bit_integers_beyond_16_bits_are_refused() -> None:
    data = encoded(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF")
    with pytest.raises(ImageError, match=r"far\.tif: integer pixels from 0 to 70000 .* convert"):
        decode_image(data, name="far.tif")


def test_floating_point_is_refused() -> None:
    data = encoded(Image.fromarray(np.array([[0.5, 1.0]], dtype=np.float32)), "TIFF")
    with pytest.raises(ImageError, match=r"float\.tif: floating-point .* convert"):
        decode_image(data, name="float.tif")


def test_alpha_is_laid_on_white() -> None:
    rgba = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 100, 128]]], dtype=np.uint8)
    pixels = decode_image(encoded(Image.fromarray(rgba), "PNG"), name="alpha.png")
    expected = np.array([[255, 255, 255], [200, 0, 0], [227, 127, 177]])
    assert np.abs(pixels[0].astype(int) - expected).max() <= 1


def test_grey_with_alpha_is_laid_on_white() -> None:
    pixels = decode_image(png(2, 1, bits=8, colour=4, rows=b"\x00\x64\x00\x64\xff"), name="la.png")
    np.testing.assert_array_equal(pixels, [[[255] * 3, [100] * 3]])


def test_palette_gives_its_colours() -> None:
    pixels = decode_image(encoded(Image.fromarray(CORNERS).quantize(8), "PNG"), name="palette.png")
    np.testing.assert_array_equal(pixels, CORNERS)


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    pixels = decode_image(encoded(image, "PNG", transparency=0), name="palette.png")
    np.testing.assert_array_equal(pixels, [[[255, 255, 255], [200, 100, 50]]])


def test_transparent_colour_of_an_rgb_png_is_white() -> None:
    pixels = decode_image(encoded(Image.fromarray(CORNERS), "PNG", transparency=(250, 10, 20)), name="key.png")
    np.testing.assert_array_equal(pixels[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(pixels[-1, -1], [200, 200, 10])


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_colours_are_about_right(form: str) -> None:
    # Ink C M Y K of 0..255, and the colour on paper by (255 - ink) * (255 - black) / 255.
    inks = {(0, 0, 0, 0): 255, (255, 0, 0, 0): (0, 255, 255), (0, 200, 0, 50): (205, 44, 205), (0, 0, 0, 255): 0}
    for ink, paper in inks.items():
        image = Image.new("CMYK", (16, 16), ink)
        pixels = decode_image(encoded(image, form), name="print.jpg")
        assert np.abs(pixels.astype(int) - np.array(paper)).max() <= 6, ink


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation_is_applied(orientation: int, form: str) -> None:
    upright = CORNERS.repeat(8, 0).repeat(8, 1)
    # How a camera held this way would have stored the upright scene, by numpy alone.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form == "JPEG" else {}
    pixels = decode_image(encoded(image, form, exif=exif, **options), name="phone.jpg")
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright)[16::32, 24::48].max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_are_turned_as_pillow_turns_them(orientation: int, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    image = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG", exif=exif)
    plain = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), "TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(decode_image(data, name="a"), decode_image(plain, name="a"))


def test_a_damaged_tag_beside_the_orientation_does_not_spoil_the_picture() -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    block = exif.tobytes()
    damaged = block.replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x02")  # a rational number that claims to be text
    assert damaged != block
    data = encoded(image, "PNG", exif=damaged)
    with pytest.raises((TypeError, AttributeError)):
        ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data, name="a.png")[..., 0], np.rot90(np.asarray(image), -1))


def test_rotation_is_kept_through_a_conversion() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.array([[0, 50, 100]], dtype=np.uint8))
    pixels = decode_image(encoded(grey, "PNG", exif=exif), name="grey.png")
    np.testing.assert_array_equal(pixels[:, 0, 0], [0, 50, 100])


@pytest.mark.parametrize("garbage", [b"Exif\x00\x00 no such thing", b"Exif\x00\x00II*\x00\xff\xff\xff\xff"])
def test_a_broken_exif_block_does_not_spoil_the_picture(garbage: bytes, photograph: bytes) -> None:
    block = b"\xff\xe1" + struct.pack(">H", len(garbage) + 2) + garbage
    pixels = decode_image(photograph[:2] + block + photograph[2:], name="a.jpg")
    np.testing.assert_array_equal(pixels, decode_image(photograph, name="a.jpg"))


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ImageError, match=r"s3://b/empty\.jpg: the file is empty"):
        decode_image(b"", name="s3://b/empty.jpg")


def test_a_text_file_is_refused() -> None:
    with pytest.raises(ImageError, match=r"notes\.jpg: not an image .*b'Dear reader"):
        decode_image(b"Dear reader, this is not an image.", name="notes.jpg")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.95])
def test_a_truncated_file_is_refused(form: str, share: float, photograph: bytes) -> None:
    whole = encoded(Image.open(io.BytesIO(photograph)), form)
    with pytest.raises(ImageError, match=r"cut\.img: "):
        decode_image(whole[: int(len(whole) * share)], name="cut.img")


def test_a_truncated_file_is_said_to_be_cut_short(photograph: bytes) -> None:
    with pytest.raises(ImageError, match=r"cut\.jpg: cut short or damaged \(\d+ bytes; OSError: .*truncated"):
        decode_image(photograph[: len(photograph) // 2], name="cut.jpg")


def test_a_decompression_bomb_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    data = bomb()
    assert len(data) < 100_000
    with pytest.raises(ImageError, match=r"bomb\.png: refused before decoding .*400000000"):
        decode_image(data, name="bomb.png")
    assert decoded == []


def test_a_bomb_in_the_gap_of_pillows_warning_is_refused_by_our_limit() -> None:
    rows = (b"\x00" + bytes(11_000 // 8)) * 10_000
    with pytest.raises(ImageError, match=r"11000x10000 is more than 100000000 pixels"):
        decode_image(png(11_000, 10_000, bits=1, colour=0, rows=rows), name="bomb.png")


def test_the_limit_can_be_lowered(photograph: bytes) -> None:
    with pytest.raises(ImageError, match="160x120 is more than 1000 pixels"):
        decode_image(photograph, name="a.jpg", max_pixels=1000)
    assert decode_image(photograph, name="a.jpg", max_pixels=160 * 120).shape == (120, 160, 3)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data, name="a.gif")[0, 0], [255, 0, 0])


@settings(max_examples=150, deadline=None)
@given(form=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"]), data=st.data())
def test_damaged_bytes_never_raise_anything_else(form: str, data: st.DataObject) -> None:
    broken = bytearray(encoded(Image.fromarray(CORNERS), form))
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode_image(bytes(broken), name="broken", max_pixels=1_000_000)
    except ImageError as error:
        assert str(error).startswith("broken: ")  # noqa: PT017
    else:
        assert pixels.ndim == 3
