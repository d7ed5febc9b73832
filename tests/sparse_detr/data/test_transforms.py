"""Sizes, boxes and pixels against arithmetic done another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparse_detr.boxes import cxcywh_to_xyxy
from sparse_detr.data.transforms import MEAN, STD, AugmentConfig, EvalTransform, TrainTransform, normalise, resized_size
from sparse_detr.errors import ConfigError
from sparse_detr.records import ImageSize, Targets

NO_BOXES = (np.zeros((0, 4)), np.zeros(0, np.int64))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def shown(pixels: torch.Tensor) -> np.ndarray:
    """Back to RGB of 0..255."""
    return ((pixels.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)) * 255).numpy()


def still(**fields: object) -> TrainTransform:
    """Nothing by chance, but for what the fields say."""
    options = {"short_sides": (64,), "max_side": 1333, "flip": 0.0, "crop": 0.0} | fields
    return TrainTransform(config=AugmentConfig(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "short", "limit", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((600, 600), 800, 1333, (800, 800)),
        ((300, 1000), 800, 1333, (400, 1333)),
        ((1000, 300), 800, 1333, (1333, 400)),
        ((375, 1242), 800, 1333, (402, 1331)),
        ((333, 500), 480, None, (480, 720)),
        ((128, 128), 128, 128, (128, 128)),
        ((1, 5000), 800, 1333, (1, 5000)),
    ],
)
def test_sizes_follow_the_authors_rule(
    size: tuple[int, int], short: int, limit: int | None, expected: tuple[int, int]
) -> None:
    assert resized_size(*size, short, limit) == expected


@given(
    height=st.integers(1, 4000), width=st.integers(1, 4000), short=st.integers(1, 1000), limit=st.none() | st.just(1333)
)
def test_sizes_equal_the_rule_in_floating_point(height: int, width: int, short: int, limit: int | None) -> None:
    """Section 13: long side by int(), short side by round(max * min / max of the image)."""
    size = short
    if limit is not None and max(height, width) / min(height, width) * size > limit:
        size = max(1, int(round(limit * min(height, width) / max(height, width))))  # noqa: RUF046
    expected = (int(size * height / width), size) if width < height else (size, int(size * width / height))
    assert resized_size(height, width, short, limit) == expected


def test_normalise_is_imagenets() -> None:
    image = noise(5, 7)
    expected = (image / 255.0 - np.array(MEAN)) / np.array(STD)
    found = normalise(image)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=1e-5)
    assert found.is_contiguous()


def test_evaluation_resizes_with_pillow_and_scales_the_boxes() -> None:
    image = noise(48, 64)
    boxes, labels = np.array([[0.0, 0.0, 64.0, 48.0], [16.0, 12.0, 32.0, 36.0]]), np.array([3, 1])
    pixels, targets = EvalTransform(size=ImageSize(short_side=80, max_side=133))(image, boxes, labels)
    expected = np.asarray(Image.fromarray(image).resize((106, 80), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(shown(pixels), expected, atol=0.01)
    assert targets.labels.tolist() == [3, 1]
    torch.testing.assert_close(targets.boxes, torch.tensor([[0.5, 0.5, 1, 1], [0.375, 0.5, 0.25, 0.5]]))


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = noise(32, 40)
    pixels, targets = EvalTransform(size=ImageSize(short_side=32, max_side=40))(image, *NO_BOXES)
    np.testing.assert_allclose(shown(pixels), image, atol=0.01)
    assert targets.boxes.shape == (0, 4)
    assert targets.labels.dtype == torch.int64


@pytest.mark.parametrize(("field", "axis"), [("flip", 1), ("vertical_flip", 0)])
def test_flips_mirror_pixels_and_boxes(field: str, axis: int) -> None:
    image = noise(64, 80)
    boxes, labels = np.array([[8.0, 16.0, 24.0, 48.0]]), np.array([2])
    pixels, targets = still(**{field: 1.0})(image, boxes, labels)
    np.testing.assert_allclose(shown(pixels), np.flip(image, axis), atol=0.01)
    expected = [1 - 0.2, 0.5, 0.2, 0.5] if axis == 1 else [0.2, 1 - 0.5, 0.2, 0.5]
    torch.testing.assert_close(targets.boxes, torch.tensor([expected]))


def patch_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Black with one white patch, and the patch's box."""
    image = np.zeros((96, 128, 3), np.uint8)
    top, left = int(rng.integers(0, 70)), int(rng.integers(0, 100))
    height, width = int(rng.integers(12, 26)), int(rng.integers(12, 28))
    image[top : top + height, left : left + width] = 255
    return image, np.array([[left, top, left + width, top + height]], dtype=np.float64)


def test_boxes_follow_the_pixels_through_flip_crop_and_resize() -> None:
    config = AugmentConfig(
        short_sides=(96, 120, 150),
        max_side=300,
        vertical_flip=0.5,
        crop=0.8,
        crop_resize=(90, 140),
        crop_min=60,
        crop_max=110,
    )
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(90):
        image, boxes = patch_scene(rng)
        pixels, targets = TrainTransform(config=config)(image, boxes, np.array([4]))
        white = shown(pixels)[..., 0] > 127
        height, width = white.shape
        if len(targets.labels) == 0:
            assert white.sum() <= max(height, width)
            continue
        kept += 1
        if min(white.any(0).sum(), white.any(1).sum()) < 3:
            continue
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        expected = cxcywh_to_xyxy(targets.boxes)[0].numpy() * (width, height, width, height)
        assert np.abs(found - expected).max() <= 1.5
    assert 50 < kept < 90


def test_boxes_outside_of_a_crop_go_with_their_labels() -> None:
    transform = still(crop=1.0, crop_resize=(), crop_min=40, crop_max=40)
    boxes = np.array([[x, y, x + 10, y + 10] for x in range(0, 120, 10) for y in range(0, 80, 10)], dtype=np.float64)
    labels = np.arange(len(boxes))
    torch.manual_seed(1)
    _, targets = transform(noise(80, 120), boxes, labels)
    # A window of 40x40 meets 4 or 5 cells of 10 on each axis.
    assert 16 <= len(targets.labels) <= 25
    assert len(targets.labels) == len(targets.boxes)
    assert (targets.boxes[:, 2:] > 0).all()
    corners = cxcywh_to_xyxy(targets.boxes)
    assert corners.min() >= -1e-6
    assert corners.max() <= 1 + 1e-6
    area = (targets.boxes[:, 2] * targets.boxes[:, 3]).sum()
    assert area.item() == pytest.approx(1, abs=1e-4)


def sizes_seen(config: AugmentConfig, image: np.ndarray, count: int) -> set[tuple[int, int]]:
    torch.manual_seed(2)
    return {tuple(TrainTransform(config=config)(image, *NO_BOXES)[0].shape[1:]) for _ in range(count)}


def test_without_a_crop_the_sizes_are_those_of_the_short_sides() -> None:
    config = AugmentConfig(short_sides=(48, 64, 80), max_side=1333, crop=0.0)
    assert sizes_seen(config, noise(60, 90), 40) == {(48, 72), (64, 96), (80, 120)}


def test_the_authors_defaults_stay_in_their_bounds() -> None:
    for height, width in sizes_seen(AugmentConfig(), noise(120, 160), 25):
        assert min(height, width) in AugmentConfig().short_sides or max(height, width) <= 1333
        assert max(height, width) <= 1334


def small(size: int) -> AugmentConfig:
    """For square pictures of few pixels: scale, crop and mirror, never above `size`."""
    sides = tuple(round(size * share) for share in (0.75, 0.875, 1.0))
    return AugmentConfig(short_sides=sides, max_side=size, crop_resize=(), crop_min=round(size * 0.65), crop_max=size)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(8, 128), seed=st.integers(0, 99))
def test_small_pictures_never_grow_beyond_the_size(height: int, width: int, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    transform = TrainTransform(config=small(size))
    pixels, _ = transform(np.zeros((height, width, 3), np.uint8), *NO_BOXES)
    longest, ratio = max(pixels.shape[1:]), max(height, width) / min(height, width)
    assert longest <= size + ratio + 1 or min(pixels.shape[1:]) == 1


def test_brightness_scales_the_pixels() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    torch.manual_seed(0)
    means = [shown(still(brightness=0.3)(image, *NO_BOXES)[0]).mean() for _ in range(40)]
    assert 69.9 <= min(means) < 85
    assert 115 < max(means) <= 130.1


def test_chance_is_torchs() -> None:
    image, boxes = noise(96, 96), np.array([[10.0, 20.0, 60.0, 70.0]])
    transform = TrainTransform(config=small(96))

    def draws(seed: int) -> list[tuple[torch.Tensor, Targets]]:
        torch.manual_seed(seed)
        return [transform(image, boxes, np.array([0])) for _ in range(6)]

    first, again, other = draws(0), draws(0), draws(1)
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1].boxes, b[1].boxes) for a, b in zip(first, again, strict=True)
    )
    assert any(a[0].shape != b[0].shape or not torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
    assert len({(pixels.shape, pixels.numpy().tobytes()) for pixels, _ in first}) > 3


def test_the_image_is_not_written_to() -> None:
    image = noise(64, 64)
    copy = image.copy()
    for transform in (EvalTransform(size=ImageSize(short_side=64, max_side=64)), still(flip=0.5, brightness=0.5)):
        transform(image, *NO_BOXES)
    np.testing.assert_array_equal(image, copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("short_sides", ()),
        ("short_sides", (0, 100)),
        ("max_side", 700),
        ("flip", 1.5),
        ("vertical_flip", -0.1),
        ("crop", 2.0),
        ("crop_resize", (0,)),
        ("crop_min", 0),
        ("crop_max", 100),
        ("brightness", 1.0),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.{field}: .*must be"):
        AugmentConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("short", "longest", "field"), [(0, 10, "short_side"), (10, 9, "max_side")])
def test_evaluation_sizes_are_checked(short: int, longest: int, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: "):
        EvalTransform(size=ImageSize(short_side=short, max_side=longest))
