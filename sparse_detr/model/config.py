"""Configuration of a model; combinations that cannot work are refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from sparse_detr.errors import require

BackboneName = Literal["resnet18", "resnet50", "resnet101", "resnet_tiny", "swin_tiny"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """The network under the detector: image to maps of strides 8, 16 and 32."""

    name: BackboneName = "resnet50"
    """`swin_tiny` is the detection variant of Swin-T. `resnet_tiny` is a ResNet of basic blocks with widths 32, 64, 96
    and 128 for small images and CPUs; two 3x3 convolutions of stride 2 stand in place of the 7x7 one and pooling."""
    norm: Literal["frozen_batch_norm", "group_norm"] = "frozen_batch_norm"
    """Of ResNets; Swin has layer norms. Frozen batch norm wants pretrained weights, group norm trains from scratch."""
    frozen_stages: int = 2
    """Number of parts (stem, four stages) that keep their weights in training; 2 is the authors' choice."""
    drop_path: float = 0.0
    """Of Swin: how often training skips the last block's branches, in [0, 1); blocks before it less, linearly."""

    def __post_init__(self) -> None:
        names = get_args(BackboneName)
        require(
            self.name in names,
            f"backbone.name: {self.name!r} is not known; choose {', '.join(names[:-1])} or {names[-1]}",
        )
        require(
            self.norm in ("frozen_batch_norm", "group_norm"),
            f"backbone.norm: {self.norm!r} is not known; choose frozen_batch_norm or group_norm",
        )
        require(0 <= self.frozen_stages <= 5, f"backbone.frozen_stages: {self.frozen_stages}; give 0 to 5")
        require(0.0 <= self.drop_path < 1.0, f"backbone.drop_path: {self.drop_path}; give a number in [0, 1)")
        require(
            self.drop_path == 0.0 or self.name == "swin_tiny",
            f"backbone.drop_path: {self.drop_path} with backbone.name: {self.name!r}; only swin_tiny has it, give 0",
        )
        require(
            self.norm == "frozen_batch_norm" or self.name != "swin_tiny",
            f"backbone.norm: {self.norm!r} with backbone.name: 'swin_tiny', which has layer norms; leave norm out",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A detector of the DETR family. The defaults are the paper's ResNet-50 at keep ratio 0.1.

    | model | fields beside the defaults |
    |---|---|
    | Sparse DETR, tokens by objectness | `token_criterion="objectness"` |
    | "efficient" Deformable DETR | `keep_ratio=1, encoder_auxiliary_loss=False` |
    | Deformable DETR, two-stage, refinement | the same, `query_content="proposal", proposal_score="class_agnostic"` |
    | Deformable DETR | `keep_ratio=1, encoder_auxiliary_loss=False, query_source="learned", box_refinement=False,
    shared_heads=True` |
    | DETR | the same, `attention="full", levels=1, queries=100, feedforward_channels=2048` |
    """

    num_classes: int = 91
    """Class logits a query gets; 91 holds COCO's raw ids 0..90."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The network under it."""
    attention: Literal["deformable", "full"] = "deformable"
    """`deformable` looks at a few points of every level; `full` is DETR's: from every token to every token of the
    stride-32 map."""
    channels: int = 256
    """C: width of every token."""
    heads: int = 8
    """M: attention heads."""
    levels: int = 4
    """L: feature levels; the last comes from a stride-2 convolution on the backbone's last map. 1 is that map alone."""
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
    query_content: Literal["memory", "proposal"] = "memory"
    """Of top-k queries: their content is the encoder's token ("efficient"), or made from the proposal's box as in
    two-stage Deformable DETR."""
    proposal_score: Literal["best_class", "class_agnostic"] = "best_class"
    """Of top-k queries: tokens are ranked by their best class logit, or by the first logit, which then is trained to
    tell objects from background whatever their class (two-stage Deformable DETR)."""
    box_refinement: bool = True
    """Every decoder layer refines the boxes of the one before; otherwise all refine the first references."""
    shared_heads: bool = False
    """One detection head for all decoder layers and the proposals, in place of one each."""
    keep_ratio: float = 0.1
    """rho: share of each image's tokens that the encoder updates; 1 is dense and builds no scoring network."""
    token_criterion: Literal["decoder_attention", "objectness"] = "decoder_attention"
    """Criterion that makes a token worth updating: a scoring network that is trained on the decoder attention map
    (DAM), or the best class score of a detection head on the backbone's features."""
    scoring_mean: Literal["valid", "all"] = "valid"
    """The scoring network compares a token with the mean over its image's own tokens, or over all with the padding, as
    the authors' weights want it: the more an image is padded, the more the padding then counts."""
    encoder_auxiliary_loss: bool = True
    """Detection heads (and losses) on every encoder layer but the last."""
    dropout: float = 0.1
    """Share of activations that training sets to zero, in [0, 1)."""

    def __post_init__(self) -> None:
        self._require_numbers()
        self._require_names()
        self._require_combination()

    def _require_numbers(self) -> None:
        for name in ("num_classes", "channels", "heads", "levels", "points", "encoder_layers", "decoder_layers",
                     "feedforward_channels", "queries"):  # fmt: skip
            value = getattr(self, name)
            require(value >= 1, f"{name}: {value}; give a whole number of at least 1")
        require(
            0.0 < self.keep_ratio <= 1.0,
            f"keep_ratio: {self.keep_ratio}; give a number in (0, 1], 1 for the dense encoder",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout: {self.dropout}; give a number in [0, 1)")
        require(
            self.channels % self.heads == 0,
            f"heads: {self.heads} does not divide channels: {self.channels}; choose a divisor",
        )
        require(
            self.channels % 32 == 0,
            f"channels: {self.channels}; the group norm of the input projection has 32 groups, give a multiple of 32",
        )

    def _require_names(self) -> None:
        for name, choices in (
            ("attention", ("deformable", "full")),
            ("query_source", ("top_k", "learned")),
            ("query_content", ("memory", "proposal")),
            ("proposal_score", ("best_class", "class_agnostic")),
            ("token_criterion", ("decoder_attention", "objectness")),
            ("scoring_mean", ("valid", "all")),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name}: {value!r} is not known; choose {choices[0]} or {choices[1]}")

    def _require_combination(self) -> None:
        require(
            self.levels >= 3 or (self.levels == 1 and self.attention == "full"),
            f"levels: {self.levels} with attention: {self.attention!r}; the backbone gives 3 maps, so ask for 3 or "
            "more, or for 1 with attention='full'",
        )
        require(
            self.attention == "deformable" or (self.query_source == "learned" and not self.box_refinement),
            "attention: 'full' with top-k queries or box refinement; DETR has neither, so set query_source='learned' "
            "and box_refinement=False",
        )
        require(
            not self.sparse or self.query_source == "top_k",
            f"keep_ratio: {self.keep_ratio} with query_source: {self.query_source!r}; sparsity shares the proposal "
            "layers of top-k queries, so set query_source='top_k' or keep_ratio=1",
        )
        require(
            not self.encoder_auxiliary_loss or self.query_source == "top_k",
            "encoder_auxiliary_loss: True with query_source: 'learned'; the encoder's heads start from proposals, "
            "so set query_source='top_k' or encoder_auxiliary_loss=False",
        )
        require(
            not self.encoder_auxiliary_loss or not self.shared_heads,
            "shared_heads: True with encoder_auxiliary_loss: True; the encoder's layers have heads of their own, so "
            "set one of them to False",
        )

    @property
    def sparse(self) -> bool:
        """Whether the encoder updates only some tokens."""
        return self.keep_ratio < 1.0

    def checked_keep_ratio(self, keep_ratio: float | None) -> float:
        """The ratio at which a model of this configuration runs: the given one, or its own.

        Raises:
            ConfigError: it is outside (0, 1], or below 1 where there is no scoring network.
        """
        ratio = self.keep_ratio if keep_ratio is None else keep_ratio
        require(0.0 < ratio <= 1.0, f"keep_ratio: {ratio}; give a number in (0, 1], 1 for the dense encoder")
        require(
            ratio == 1.0 or self.sparse,
            f"keep_ratio: {ratio}, but this model was built dense (keep_ratio=1) and has no scoring network; "
            "leave keep_ratio out, or use a model trained with one below 1",
        )
        return ratio
