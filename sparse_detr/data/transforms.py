"""From decoded pixels and boxes to what the network takes: resizing, augmentation, normalisation.

The authors' recipe (algorithm of DETR): training flips half of the images and resizes the short side to one of
several lengths, for half of them after a random crop; evaluation resizes to 800 with at most 1333 for the long side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from PIL import Image
from torch import Tensor

from sparse_detr.boxes import xyxy_to_cxcywh
from sparse_detr.errors import ImageError, require
from sparse_detr.records import COCO_IMAGE_SIZE, ImageSize, Targets

MEAN = (0.485, 0.456, 0.406)
"""ImageNet mean of R, G, B in 0..1."""
STD = (0.229, 0.224, 0.225)
"""ImageNet standard deviation of R, G, B in 0..1."""

Region = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the decoded image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training images; the defaults are the authors' for COCO."""

    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """The short side becomes one of these, pixels."""
    max_side: int = 1333
    """The long side is at most this, pixels."""
    flip: float = 0.5
    """Probability of a mirror image."""
    vertical_flip: float = 0.0
    """Probability of an image upside down; for pictures without an up, as from a microscope."""
    crop: float = 0.5
    """Probability of a random crop."""
    crop_resize: tuple[int, ...] = (400, 500, 600)
    """Before the crop the short side becomes one of these, pixels; empty: the crop is cut from the image as it is."""
    crop_min: int = 384
    """Least height and width of the crop, pixels after that resize."""
    crop_max: int = 600
    """Largest height and width of the crop, pixels after that resize."""
    brightness: float = 0.0
    """Pixels are multiplied by up to 1 +- this."""

    def __post_init__(self) -> None:
        require(len(self.short_sides) > 0, _wrong("short_sides", self.short_sides, "at least one length"))
        require(min(self.short_sides, default=1) > 0, _wrong("short_sides", self.short_sides, "above 0"))
        require(
            self.max_side >= max(self.short_sides, default=0),
            _wrong("max_side", self.max_side, "at least every short side"),
        )
        for name in ("flip", "vertical_flip", "crop"):
            require(0 <= getattr(self, name) <= 1, _wrong(name, getattr(self, name), "a probability, 0 to 1"))
        require(min(self.crop_resize, default=1) > 0, _wrong("crop_resize", self.crop_resize, "above 0"))
        require(self.crop_min > 0, _wrong("crop_min", self.crop_min, "above 0"))
        require(self.crop_max >= self.crop_min, _wrong("crop_max", self.crop_max, "at least crop_min"))
        require(0 <= self.brightness < 1, _wrong("brightness", self.brightness, "at least 0 and below 1"))


_LONGEST = 1.5
"""Longer side after resizing, over `max_side`: the authors' rule rounds the short side, by as much as a half where it
is one pixel, and knows no limit below that. An image of 1 x 20000 pixels would stay as long as it is."""


@runtime_checkable
class Transform(Protocol):
    """A function from a decoded image to a normalised tensor with its targets."""

    def __call__(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        boxes: Float64[np.ndarray, "N 4"],
        labels: Int64[np.ndarray, " N"],
        rng: np.random.Generator | None = None,
    ) -> tuple[Float[Tensor, "3 h w"], Targets]:
        """RGB pixels and xyxy pixel boxes in; normalised tensor and targets out. What is left to chance follows from
        `rng`, or without it from torch's generator of the process."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTransform:
    """Resize and normalise, nothing by chance."""

    size: ImageSize = COCO_IMAGE_SIZE

    def __call__(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        boxes: Float64[np.ndarray, "N 4"],
        labels: Int64[np.ndarray, " N"],
        rng: np.random.Generator | None = None,
    ) -> tuple[Float[Tensor, "3 h w"], Targets]:
        """Boxes are xyxy pixels of the image.

        Raises:
            ImageError: the image is so long and thin that it would not fit into the size.
        """
        height, width = image.shape[:2]
        region = (0.0, 0.0, float(width), float(height))
        resized = resized_size(height, width, self.size.short_side, self.size.max_side)
        if max(resized) > _LONGEST * self.size.max_side:
            raise ImageError(
                f"{height} x {width} pixels (height x width) would be resized to {resized[0]} x {resized[1]}, and "
                f"max_side is {self.size.max_side}; cut the image, or take it out"
            )
        pixels = _resized(image, region, resized)
        return normalise(pixels), _targets(boxes, labels, region)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTransform:
    """Flip, crop, resize and normalise by chance.

    Where the authors resample twice (resize, crop, resize) the crop is cut from the original at once: one resampling,
    the same sizes.
    """

    config: AugmentConfig

    def __call__(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        boxes: Float64[np.ndarray, "N 4"],
        labels: Int64[np.ndarray, " N"],
        rng: np.random.Generator | None = None,
    ) -> tuple[Float[Tensor, "3 h w"], Targets]:
        """Boxes are xyxy pixels of the image; those that a crop leaves nothing of are not among the targets."""
        config = self.config
        rng = rng or np.random.default_rng(int(torch.randint(2**62, ())))
        region, (height, width) = (0.0, 0.0, float(image.shape[1]), float(image.shape[0])), image.shape[:2]
        if rng.random() < config.crop:
            region, (height, width) = self._crop(height, width, rng)
        short_side = int(rng.choice(config.short_sides))
        pixels = _resized(image, region, resized_size(height, width, short_side, config.max_side))
        targets = _targets(boxes, labels, region)
        if rng.random() < config.flip:
            pixels, targets = pixels[:, ::-1], _mirrored(targets, 0)
        if rng.random() < config.vertical_flip:
            pixels, targets = pixels[::-1], _mirrored(targets, 1)
        scale = 1.0 + config.brightness * float(rng.uniform(-1, 1))
        return normalise(pixels, scale=scale), targets

    def _crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[Region, tuple[int, int]]:
        """Region to cut from the original, and the size of the crop in pixels after the first resize."""
        config = self.config
        full = (height, width)
        if config.crop_resize:
            full = resized_size(height, width, int(rng.choice(config.crop_resize)))
        rows, columns = (int(rng.integers(min(config.crop_min, side), min(config.crop_max, side) + 1)) for side in full)
        top, left = int(rng.integers(full[0] - rows + 1)), int(rng.integers(full[1] - columns + 1))
        y, x = height / full[0], width / full[1]
        return (left * x, top * y, (left + columns) * x, (top + rows) * y), (rows, columns)


def resized_size(height: int, width: int, short_side: int, max_side: int | None = None) -> tuple[int, int]:
    """(height, width) after the authors' rule: the short side becomes `short_side`, the long one is rounded down;
    where that would exceed `max_side` the short side is `round(max_side * short / long)` instead."""
    short, long = min(height, width), max(height, width)
    if max_side is not None and long / short * short_side > max_side:
        short_side = max(1, round(max_side * short / long))
    other = max(1, short_side * long // short)
    return (short_side, other) if height <= width else (other, short_side)


def normalise(image: UInt8[np.ndarray, "H W 3"], *, scale: float = 1.0) -> Float[Tensor, "3 H W"]:
    """8-bit RGB to a float32 tensor with ImageNet's mean and deviation; `scale` multiplies the pixels first."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    std = torch.tensor(STD)[:, None, None]
    if scale != 1.0:
        planes.mul_(scale).clamp_(max=255)
    return planes.div_(255 * std).sub_(torch.tensor(MEAN)[:, None, None] / std)


def _resized(image: np.ndarray, region: Region, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    if region == (0.0, 0.0, image.shape[1], image.shape[0]) and (height, width) == image.shape[:2]:
        return image
    picture = Image.fromarray(image)
    return np.array(picture.resize((width, height), Image.Resampling.BILINEAR, box=region))


def _targets(boxes: np.ndarray, labels: np.ndarray, region: Region) -> Targets:
    x0, y0, x1, y1 = region
    moved = np.clip((boxes - (x0, y0, x0, y0)) / (x1 - x0, y1 - y0, x1 - x0, y1 - y0), 0, 1)
    corners = torch.from_numpy(moved.astype(np.float32))
    kept = ((corners[:, 2:] > corners[:, :2]).all(dim=1)).nonzero()[:, 0]
    return Targets(labels=torch.from_numpy(labels)[kept], boxes=xyxy_to_cxcywh(corners[kept]))


def _mirrored(targets: Targets, axis: int) -> Targets:
    boxes = targets.boxes.clone()
    boxes[:, axis] = 1 - boxes[:, axis]
    return Targets(labels=targets.labels, boxes=boxes)


def _wrong(name: str, value: object, right: str) -> str:
    return f"augment.{name}: {value!r}; it must be {right}"
