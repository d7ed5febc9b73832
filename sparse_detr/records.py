"""The values that travel between the parts of the detector.

Model, losses, data and evaluation never import one another: they meet here. Axes are words, the same
everywhere: B images, T tokens over all levels, K kept tokens, Q queries, L levels, M heads, P points,
C channels, D decoder layers, N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_detr.errors import ConfigError, require

Shapes = tuple[tuple[int, int], ...]
"""(height, width) of every level, fine to coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Images of different sizes, padded with zeros at the right and the bottom to one size."""

    pixels: Float[Tensor, "B 3 H W"]
    """Normalised RGB; zero where padded."""
    padding: Bool[Tensor, "B H W"]
    """True where there is no image."""

    @classmethod
    def from_list(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Pad normalised `[3, H, W]` float tensors to the largest height and width among them.

        Raises:
            ConfigError: the list is empty, or an image is not a float tensor of shape `[3, H, W]`.
        """
        require(len(images) > 0, "images: the list is empty; give at least one [3, H, W] tensor")
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or 0 in image.shape:
                raise ConfigError(
                    f"images[{index}]: shape {tuple(image.shape)}, {image.dtype}; "
                    "give float tensors of shape [3, H, W], normalised"
                )
        height = max(image.shape[1] for image in images)
        width = max(image.shape[2] for image in images)
        first = images[0]
        pixels = first.new_zeros((len(images), 3, height, width))
        padding = torch.ones((len(images), height, width), dtype=torch.bool, device=first.device)
        for row, image in enumerate(images):
            pixels[row, :, : image.shape[1], : image.shape[2]] = image
            padding[row, : image.shape[1], : image.shape[2]] = False
        return cls(pixels=pixels, padding=padding)

    def to(self, device: torch.device | str) -> ImageBatch:
        """The same batch on another device."""
        return replace(self, pixels=self.pixels.to(device), padding=self.padding.to(device))

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The objects of one image."""

    labels: Int[Tensor, " N"]
    """Contiguous class indices, int64."""
    boxes: Float[Tensor, "N 4"]
    """cxcywh, relative to the image."""

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        return replace(self, labels=self.labels.to(device), boxes=self.boxes.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """The objects found in one image, best first."""

    scores: Float[Tensor, " N"]
    labels: Int[Tensor, " N"]
    boxes: Float[Tensor, "N 4"]
    """xyxy, pixels of the original image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The classes of a data set: label i has name `names[i]` and COCO category id `category_ids[i]`."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        require(
            len(self.names) == len(self.category_ids),
            f"classes: {len(self.names)} names but {len(self.category_ids)} category ids; give one id a name",
        )
        require(
            len(set(self.category_ids)) == len(self.category_ids),
            f"classes.category_ids: {self.category_ids} has an id twice; ids must differ",
        )

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSize:
    """The size that images are resized to before the model sees them."""

    short_side: int
    """Pixels of the shorter side."""
    max_side: int
    """The longer side never gets more pixels than this; it wins over `short_side`."""

    def __post_init__(self) -> None:
        require(self.short_side >= 1, f"short_side: {self.short_side}; give a whole number of at least 1")
        require(
            self.max_side >= self.short_side,
            f"max_side: {self.max_side} is less than short_side: {self.short_side}; give at least as much",
        )

    def with_sides(self, short_side: int | None, max_side: int | None) -> ImageSize:
        """This size with the sides that are given (pixels) in place of its own.

        Raises:
            ConfigError: the longer side would be less than the shorter one.
        """
        return ImageSize(short_side=short_side or self.short_side, max_side=max_side or self.max_side)


COCO_IMAGE_SIZE = ImageSize(short_side=800, max_side=1333)
"""The authors' for COCO, where neither user nor model says another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePyramid:
    """Projected backbone features of all levels, flattened row by row, fine to coarse."""

    tokens: Float[Tensor, "B T C"]
    position: Float[Tensor, "B T C"]
    """Sine encoding plus the level's embedding."""
    padding: Bool[Tensor, "B T"]
    """True at tokens without image."""
    valid_ratios: Float[Tensor, "B L 2"]
    """Share of each level's (width, height) that is image."""
    shapes: Shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """One set of predictions: class logits and boxes."""

    logits: Float[Tensor, "B N classes"]
    boxes: Float[Tensor, "B N 4"]
    """cxcywh, relative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderAttention:
    """Sampling locations and weights of the decoder's cross-attention, over all D layers."""

    locations: Float[Tensor, "B D Q M L P 2"]
    """(x, y) relative to each level, as given to the sampler."""
    weights: Float[Tensor, "B D Q M L P"]
    """After the softmax over L x P."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSelection:
    """Which tokens the encoder updates."""

    saliency: Float[Tensor, "B T"]
    """Logit of every token: the scoring network's, or the best class logit of the objectness head. Padded tokens hold
    the minimum of their image (of the whole batch, where the model's `scoring_mean` is "all")."""
    kept: Int[Tensor, "B K"]
    """Token indices by falling saliency; row b has `counts[b]` rows that are really updated."""
    counts: Int[Tensor, " B"]
    """Number of updated tokens of each image, at most K."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Output of the detector.

    All after `selection` are None or empty in evaluation unless asked for (`model(batch, with_auxiliary=True)`).
    """

    logits: Float[Tensor, "B Q classes"]
    boxes: Float[Tensor, "B Q 4"]
    """cxcywh, relative."""
    kept_tokens: Int[Tensor, "B K"] | None
    """Token indices that the encoder updated; None in dense mode."""
    query_tokens: Int[Tensor, "B Q"] | None
    """Token indices that became decoder queries; None where queries are learned."""
    shapes: Shapes
    token_padding: Bool[Tensor, "B T"]
    selection: TokenSelection | None = None
    """Present in sparse mode, also in evaluation (explain and overlap metrics need it)."""
    decoder_auxiliary: tuple[Predictions, ...] = ()
    """Predictions of decoder layers 0 .. D-2."""
    encoder_auxiliary: tuple[Predictions, ...] = ()
    """Predictions of encoder layers 0 .. E-2 on the kept tokens (on all tokens in dense mode)."""
    proposals: Predictions | None = None
    """First-stage predictions of all T tokens."""
    class_agnostic_proposals: bool = False
    """Whether the first logit of `proposals` stands for any object, so that all true labels count as 0 there."""
    objectness: Predictions | None = None
    """Predictions of all T tokens from the backbone's features, where these choose the tokens."""
    decoder_attention: DecoderAttention | None = None
    """None with full attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenImage:
    """An image that cannot be used."""

    file: str
    """Path or URI."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One image with its objects, ready for the network."""

    image_id: int
    pixels: Float[Tensor, "3 H W"]
    """Normalised RGB."""
    targets: Targets
    original_size: tuple[int, int]
    """(height, width) in pixels before any resizing."""
    instead_of: tuple[BrokenImage, ...] = ()
    """Images that should have been here, and for which this one stands in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples padded together."""

    images: ImageBatch
    targets: tuple[Targets, ...]
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]
    broken: tuple[BrokenImage, ...] = ()
    """Images that could not be used, and for which others stand in."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(self, images=self.images.to(device), targets=tuple(t.to(device) for t in self.targets))
