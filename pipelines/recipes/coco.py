"""The family that the paper compares, as whole runs with its training schedule (COCO, 50 epochs, batch 16).

Published numbers are the authors' AP on COCO val2017 (README of their code). Starting weights are the user's:
`--training.init-backbone` takes a file, an `s3://` or an `https://` address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.recipes.data import DataConfig
from pipelines.recipes.optimizer import OptimizerConfig
from sparse_detr.model.config import BackboneConfig, ModelConfig

Recipe = Callable[[], RunConfig]

_SWIN = BackboneConfig(name="swin_tiny", drop_path=0.2)


def r50_rho10() -> RunConfig:
    """Sparse DETR, ResNet-50, keep ratio 0.1.

    Expected on COCO val2017: AP 45.3 (published). Time: not measured; it wants a machine with several GPUs.

        sparse-detr train r50_rho10 --data.train-annotations s3://coco/instances_train2017.json ...
            --training.init-backbone s3://weights/resnet50.safetensors --training.workers 8 --training.use-gpu
    """
    return RunConfig(
        name="r50_rho10",
        model=ModelConfig(num_classes=80),
        training=TrainingConfig(workers=8, use_gpu=True, cpus_per_worker=4),
        data=DataConfig(loader_workers=3, cache="none"),
        output="runs/r50_rho10",
    )


def _variant(name: str, **model: Any) -> RunConfig:
    """`r50_rho10` with another name and some other fields of the model."""
    base = r50_rho10()
    return replace(base, name=name, output=f"runs/{name}", model=replace(base.model, **model))


def r50_dense() -> RunConfig:
    """Deformable DETR with top-k queries and refinement ("efficient"), ResNet-50: the dense baseline.

    Expected on COCO val2017: AP 46.0 (published). Time: not measured.

        sparse-detr train r50_dense --data.train-annotations ...
    """
    return _variant("r50_dense", keep_ratio=1.0, encoder_auxiliary_loss=False)


def r50_deformable() -> RunConfig:
    """Deformable DETR, one-stage, ResNet-50: learned queries, one head for all layers.

    Expected on COCO val2017: AP 43.9 (published). Time: not measured.

        sparse-detr train r50_deformable --data.train-annotations ...
    """
    return _variant("r50_deformable", **_LEARNED, box_refinement=False, shared_heads=True)


def r50_deformable_refined() -> RunConfig:
    """`r50_deformable` with iterative box refinement, as in the paper of Deformable DETR.

    No published number with this schedule. Time: not measured.

        sparse-detr train r50_deformable_refined --data.train-annotations ...
    """
    return _variant("r50_deformable_refined", **_LEARNED)


def r50_two_stage() -> RunConfig:
    """Two-stage Deformable DETR, ResNet-50: queries from class-agnostic proposals, one head for all layers.

    It still refines boxes from layer to layer, as the authors' code does. No published number with this schedule.
    Time: not measured.

        sparse-detr train r50_two_stage --data.train-annotations ...
    """
    return _variant("r50_two_stage", **_TWO_STAGE, shared_heads=True)


def r50_two_stage_refined() -> RunConfig:
    """Two-stage Deformable DETR with box refinement, ResNet-50: a head for each layer.

    No published number with this schedule. Time: not measured.

        sparse-detr train r50_two_stage_refined --data.train-annotations ...
    """
    return _variant("r50_two_stage_refined", **_TWO_STAGE)


def r50_rho10_objectness() -> RunConfig:
    """`r50_rho10` with tokens chosen by objectness: the paper's other criterion (its figure 4 puts DAM above).

    No published number but that figure. Time: not measured.

        sparse-detr train r50_rho10_objectness --data.train-annotations ...
    """
    return _variant("r50_rho10_objectness", token_criterion="objectness")


def r50_rho10_no_auxiliary() -> RunConfig:
    """`r50_rho10` without the encoder auxiliary loss (the paper's figure 6).

    No published number but that figure. Time: not measured.

        sparse-detr train r50_rho10_no_auxiliary --data.train-annotations ...
    """
    return _variant("r50_rho10_no_auxiliary", encoder_auxiliary_loss=False)


def r50_dense_auxiliary() -> RunConfig:
    """`r50_dense` with the encoder auxiliary loss, on all tokens.

    No published number. Time: not measured.

        sparse-detr train r50_dense_auxiliary --data.train-annotations ...
    """
    return _variant("r50_dense_auxiliary", keep_ratio=1.0)


def r50_rho10_deep() -> RunConfig:
    """`r50_rho10` with 12 encoder layers, which the encoder auxiliary loss makes trainable (the paper's figure 6).

    No published number but that figure. Time: not measured.

        sparse-detr train r50_rho10_deep --data.train-annotations ...
    """
    return _variant("r50_rho10_deep", encoder_layers=12)


def r50_detr() -> RunConfig:
    """DETR, ResNet-50: attention from every token to every token of the stride-32 map, 100 learned queries.

    The baseline whose cost the paper starts from, with DETR's long schedule. It learns from the focal losses of the
    whole family, where DETR had a softmax with a background class: do not expect its published AP 42.0 to the digit.
    Time: not measured.

        sparse-detr train r50_detr --data.train-annotations ...
    """
    config = _variant("r50_detr", **_LEARNED, **_FULL, box_refinement=False, shared_heads=True)
    return replace(
        config,
        optimizer=OptimizerConfig(lr=1e-4, backbone_lr=1e-5, drop_epoch=400),
        training=replace(config.training, epochs=500),
    )


def r18_rho30() -> RunConfig:
    """Sparse DETR, ResNet-18, keep ratio 0.3: about half the backbone's cost. No published number. Time: not measured.

    sparse-detr train r18_rho30 --data.train-annotations ...
    """
    return _variant("r18_rho30", keep_ratio=0.3, backbone=BackboneConfig(name="resnet18"))


def r101_rho30() -> RunConfig:
    """Sparse DETR, ResNet-101, keep ratio 0.3. No published number. Time: not measured.

    sparse-detr train r101_rho30 --data.train-annotations ...
    """
    return _variant("r101_rho30", keep_ratio=0.3, backbone=BackboneConfig(name="resnet101"))


def swint_dense() -> RunConfig:
    """`r50_dense` on Swin-T. Expected on COCO val2017: AP 48.0 (published). Time: not measured.

    sparse-detr train swint_dense --training.init-backbone swin_tiny_patch4_window7_224.pth ...
    """
    return _variant("swint_dense", keep_ratio=1.0, encoder_auxiliary_loss=False, backbone=_SWIN)


def swint_deformable() -> RunConfig:
    """`r50_deformable` on Swin-T. Expected on COCO val2017: AP 45.7 (published). Time: not measured.

    sparse-detr train swint_deformable --training.init-backbone swin_tiny_patch4_window7_224.pth ...
    """
    return _variant("swint_deformable", **_LEARNED, box_refinement=False, shared_heads=True, backbone=_SWIN)


def _sparse(prefix: str, network: str, percent: int, ap: float, backbone: BackboneConfig) -> Recipe:
    """One keep ratio of a published row: they differ in nothing else."""
    name = f"{prefix}_rho{percent}"

    def recipe() -> RunConfig:
        return _variant(name, keep_ratio=percent / 100, backbone=backbone)

    recipe.__name__ = name
    recipe.__doc__ = (
        f"Sparse DETR, {network}, keep ratio {percent / 100}. Expected on COCO val2017: AP {ap} (published). "
        f"Time: not measured.\n\n    sparse-detr train {name} --data.train-annotations ...\n"
    )
    return recipe


_LEARNED: dict[str, Any] = {"query_source": "learned", "keep_ratio": 1.0, "encoder_auxiliary_loss": False}
_TWO_STAGE: dict[str, Any] = {
    "query_content": "proposal",
    "proposal_score": "class_agnostic",
    "keep_ratio": 1.0,
    "encoder_auxiliary_loss": False,
}
_FULL: dict[str, Any] = {"attention": "full", "levels": 1, "queries": 100, "feedforward_channels": 2048}
_R50_AP = {20: 45.6, 30: 46.0, 40: 46.2, 50: 46.3}
_SWINT_AP = {10: 48.2, 20: 48.8, 30: 49.1, 40: 49.2, 50: 49.3}

PAPER_RECIPES: tuple[Recipe, ...] = (
    r50_rho10,
    *(_sparse("r50", "ResNet-50", percent, ap, BackboneConfig()) for percent, ap in _R50_AP.items()),
    r50_dense,
    r50_deformable,
    *(_sparse("swint", "Swin-T", percent, ap, _SWIN) for percent, ap in _SWINT_AP.items()),
    swint_dense,
    swint_deformable,
    r50_deformable_refined,
    r50_two_stage,
    r50_two_stage_refined,
    r50_rho10_objectness,
    r50_rho10_no_auxiliary,
    r50_dense_auxiliary,
    r50_rho10_deep,
    r50_detr,
    r18_rho30,
    r101_rho30,
)
"""In the order of the paper's table, then its ablations and baselines."""
