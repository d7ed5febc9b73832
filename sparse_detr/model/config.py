"""What a model is made of, in numbers and names; combinations that cannot work are refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sparse_detr.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """The convolutional network under the detector."""

    name: Literal["resnet18", "resnet50", "resnet_tiny"] = "resnet50"
    """`resnet_tiny` is a ResNet of basic blocks with widths 32, 64, 96, 128 for small images and CPUs; two 3x3
    convolutions of stride 2 stand in place of the 7x7 one and the max pooling."""
    norm: Literal["frozen_batch_norm", "group_norm"] = "frozen_batch_norm"
    """Frozen batch norm wants pretrained weights; group norm trains from nothing."""
    frozen_stages: int = 2
    """How many of (stem, layer1, layer2, layer3, layer4) keep their weights in training; 2 is the authors' choice."""

    def __post_init__(self) -> None:
        require(
            self.name in ("resnet18", "resnet50", "resnet_tiny"),
            f"backbone.name: {self.name!r} is not known; choose resnet18, resnet50 or resnet_tiny",
        )
        require(
            self.norm in ("frozen_batch_norm", "group_norm"),
            f"backbone.norm: {self.norm!r} is not known; choose frozen_batch_norm or group_norm",
        )
        require(0 <= self.frozen_stages <= 5, f"backbone.frozen_stages: {self.frozen_stages}; give 0 to 5")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A detector of the Deformable DETR family. The defaults are the paper's ResNet-50 at keep ratio 0.1."""

    num_classes: int = 91
    """Class logits a query gets; 91 holds COCO's raw ids 0..90."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The convolutional network under it."""
    channels: int = 256
    """C: width of every token."""
    heads: int = 8
    """M: attention heads."""
    levels: int = 4
    """L: feature levels; the last comes from a stride-2 convolution on the backbone's last map."""
    points: int = 4
    """P: sampling points per head and level."""
    encoder_layers: int = 6
    """Layers that update the kept tokens."""
    decoder_layers: int = 6
    """Layers that turn queries into boxes."""
    feedforward_channels: int = 1024
    """Width between the two linear layers after each attention."""
    queries: int = 300
    """Q: decoder queries."""
    query_source: Literal["top_k", "learned"] = "top_k"
    """`top_k`: the best-scored encoder tokens (the paper's top-k decoder queries); `learned`: embeddings."""
    box_refinement: bool = True
    """Every decoder layer refines the boxes of the one before. Needs top-k queries, as in the authors' code."""
    keep_ratio: float = 0.1
    """rho: share of each image's tokens that the encoder updates; 1 is dense and builds no scoring network."""
    encoder_auxiliary_loss: bool = True
    """Detection heads (and losses) on every encoder layer but the last."""
    dropout: float = 0.1
    """Share of activations that training sets to zero, in [0, 1)."""

    def __post_init__(self) -> None:
        for name in ("num_classes", "channels", "heads", "levels", "points", "encoder_layers", "decoder_layers",
                     "feedforward_channels", "queries"):  # fmt: skip
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; give a whole number of at least 1")
        require(self.levels >= 3, f"levels: {self.levels}; the backbone gives 3, so ask for 3 or more")
        require(
            self.query_source in ("top_k", "learned"),
            f"query_source: {self.query_source!r} is not known; choose top_k or learned",
        )
        require(
            0.0 < self.keep_ratio <= 1.0,
            f"keep_ratio: {self.keep_ratio}; give a number in (0, 1], 1 for the dense encoder",
        )
        require(
            self.keep_ratio == 1.0 or self.query_source == "top_k",
            f"keep_ratio: {self.keep_ratio} with query_source: {self.query_source!r}; sparsity shares the proposal "
            "layers of top-k queries, so set query_source='top_k' or keep_ratio=1",
        )
        require(
            not self.box_refinement or self.query_source == "top_k",
            "box_refinement: True with query_source: 'learned'; the authors' model refines boxes of top-k queries "
            "only, so set query_source='top_k' or box_refinement=False",
        )
        require(
            not self.encoder_auxiliary_loss or self.query_source == "top_k",
            "encoder_auxiliary_loss: True with query_source: 'learned'; the encoder's heads start from proposals, "
            "so set query_source='top_k' or encoder_auxiliary_loss=False",
        )
        require(
            self.channels % self.heads == 0,
            f"heads: {self.heads} does not divide channels: {self.channels}; choose a divisor",
        )
        require(
            self.channels % 32 == 0,
            f"channels: {self.channels}; the group norm of the input projection has 32 groups, give a multiple of 32",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout: {self.dropout}; give a number in [0, 1)")

    @property
    def sparse(self) -> bool:
        """Whether a scoring network chooses the tokens."""
        return self.keep_ratio < 1.0
