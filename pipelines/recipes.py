"""Whole runs as functions. A variant calls another recipe and changes a few lines.

Each docstring has the expected result, the time and the command. The locations of the images are the user's:
`sparse-detr train RECIPE --data.train-annotations ...`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from pipelines.config import DataConfig, OptimizerConfig, RunConfig, TrainingConfig
from sparse_detr.data.transforms import AugmentConfig
from sparse_detr.errors import ConfigError
from sparse_detr.losses.config import LossConfig
from sparse_detr.model.config import BackboneConfig, ModelConfig


def r50_rho10() -> RunConfig:
    """Sparse DETR, ResNet-50, keep ratio 0.1, with the paper's schedule (50 epochs, batch 16).

    Expected on COCO val2017: AP 45.3 (published). Time: days on 8 GPUs.

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


def _r50(name: str, keep_ratio: float) -> RunConfig:
    base = r50_rho10()
    return replace(base, name=name, output=f"runs/{name}", model=replace(base.model, keep_ratio=keep_ratio))


def r50_rho20() -> RunConfig:
    """`r50_rho10` at keep ratio 0.2. Expected on COCO val2017: AP 45.6 (published). Time: days on 8 GPUs.

    sparse-detr train r50_rho20 --data.train-annotations ...
    """
    return _r50("r50_rho20", 0.2)


def r50_rho30() -> RunConfig:
    """`r50_rho10` at keep ratio 0.3. Expected on COCO val2017: AP 46.0 (published). Time: days on 8 GPUs.

    sparse-detr train r50_rho30 --data.train-annotations ...
    """
    return _r50("r50_rho30", 0.3)


def r50_rho40() -> RunConfig:
    """`r50_rho10` at keep ratio 0.4. Expected on COCO val2017: AP 46.2 (published). Time: days on 8 GPUs.

    sparse-detr train r50_rho40 --data.train-annotations ...
    """
    return _r50("r50_rho40", 0.4)


def r50_rho50() -> RunConfig:
    """`r50_rho10` at keep ratio 0.5. Expected on COCO val2017: AP 46.3 (published). Time: days on 8 GPUs.

    sparse-detr train r50_rho50 --data.train-annotations ...
    """
    return _r50("r50_rho50", 0.5)


def r50_dense() -> RunConfig:
    """The dense baseline with top-k queries and box refinement, no encoder auxiliary loss ("efficient").

    Expected on COCO val2017: AP 46.0 (published). Time: days on 8 GPUs.

        sparse-detr train r50_dense --data.train-annotations ...
    """
    base = _r50("r50_dense", 1.0)
    return replace(base, model=replace(base.model, encoder_auxiliary_loss=False))


def r18_rho30() -> RunConfig:
    """`r50_rho30` on a ResNet-18: about half the backbone's cost. No published number. Time: days on 8 GPUs.

    sparse-detr train r18_rho30 --data.train-annotations ...
    """
    base = _r50("r18_rho30", 0.3)
    return replace(base, model=replace(base.model, backbone=BackboneConfig(name="resnet18")))


def tiny() -> RunConfig:
    """A small Sparse DETR for 128x128 pictures, from nothing: what the demo trains on generated shapes.

    Measured on 300 held-out shapes after training on 2000: AP 0.482, AP50 0.726 (docs/results.md). Time: 10 and a half
    minutes with 2 workers on 2 CPU cores.

        sparse-detr data shapes --output runs/shapes
        sparse-detr train tiny --data.train-annotations runs/shapes/train.json --data.train-images runs/shapes/train
            --data.val-annotations runs/shapes/val.json --data.val-images runs/shapes/val
    """
    return RunConfig(
        name="tiny",
        model=ModelConfig(
            num_classes=4,
            backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0),
            channels=128,
            heads=4,
            levels=3,
            encoder_layers=2,
            decoder_layers=2,
            feedforward_channels=256,
            queries=50,
            keep_ratio=0.3,
            dropout=0.0,
        ),
        # From nothing and in minutes, telling the classes apart is what takes longest.
        loss=LossConfig(class_weight=4.0),
        data=DataConfig(
            short_side=128,
            max_side=128,
            augment=AugmentConfig(short_sides=(128,), max_side=128, crop=0.0),
            cache="pixels",
        ),
        optimizer=OptimizerConfig(
            lr=8e-4,
            backbone_lr=8e-4,
            offsets_factor=0.5,
            clip_norm=1.0,
            schedule="cosine",
            warmup_steps=50,
            scale_with_batch=False,
        ),
        training=TrainingConfig(epochs=8, global_batch=8, workers=2, ema_decay=0.99),
        output="runs/tiny",
    )


def bccd_r18() -> RunConfig:
    """Blood cells (BCCD: 205 training images, 3 classes) on a ResNet-18 whose stem to layer3 is pretrained.

    Pictures of 256x192 and a transformer of 3 + 3 layers, so that 2 CPU cores are enough. Measured: AP50 0.74,
    AP 0.39 on the test split (docs/results.md). Time: 23 minutes of training on 2 CPU cores that had other work too.

        sparse-detr data import-voc --root bccd --split train --output runs/bccd/train.json   (val and test likewise)
        sparse-detr train bccd_r18 --data.train-annotations runs/bccd/train.json --data.train-images bccd/JPEGImages
            --data.val-annotations runs/bccd/val.json --data.val-images bccd/JPEGImages
            --training.init-backbone resnet18_imagenet_stem_to_layer3.safetensors
    """
    base = tiny()
    return replace(
        base,
        name="bccd_r18",
        model=replace(
            base.model,
            num_classes=3,
            heads=8,
            levels=4,
            backbone=BackboneConfig(name="resnet18", frozen_stages=3),
            encoder_layers=3,
            decoder_layers=3,
            feedforward_channels=512,
            queries=100,
        ),
        data=DataConfig(
            short_side=192,
            max_side=256,
            augment=AugmentConfig(
                short_sides=(160, 176, 192, 208, 224),
                max_side=320,
                vertical_flip=0.5,
                crop=0.5,
                crop_resize=(192, 224, 256),
                crop_min=128,
                crop_max=192,
                brightness=0.2,
            ),
            cache="pixels",
        ),
        loss=LossConfig(),
        optimizer=replace(base.optimizer, lr=5e-4, backbone_lr=1e-4, warmup_steps=100),
        training=TrainingConfig(epochs=20, global_batch=8, workers=2, evaluate_every=5, ema_decay=0.99),
        output="runs/bccd_r18",
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe
    for recipe in (tiny, bccd_r18, r50_rho10, r50_rho20, r50_rho30, r50_rho40, r50_rho50, r50_dense, r18_rho30)
}
"""Every recipe by name."""


def get_recipe(name: str) -> RunConfig:
    """The run of that name.

    Raises:
        ConfigError: no recipe has the name; with the nearest one that does.
    """
    if name in RECIPES:
        return RECIPES[name]()
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(RECIPES)}"
    raise ConfigError(f"recipe: {name!r} does not exist; {hint}")
