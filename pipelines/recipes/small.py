"""Whole runs as functions. A variant calls another recipe and changes a few lines.

Each docstring has the expected result, the time and the command. The locations of the images are the user's:
`sparse-detr train RECIPE --data.train-annotations ...`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.recipes.data import DataConfig
from pipelines.recipes.optimizer import OptimizerConfig
from sparse_detr.data.transforms import AugmentConfig
from sparse_detr.losses.config import LossConfig
from sparse_detr.model.config import BackboneConfig, ModelConfig


def tiny() -> RunConfig:
    """A small Sparse DETR for 128x128 pictures, from scratch: what the demo trains on generated shapes.

    Measured on 300 validation shapes after training on 2000: AP 0.471, AP50 0.714 (docs/results.md). Time: 6 to 12
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


def tiny_objectness() -> RunConfig:
    """`tiny` with tokens chosen by objectness: the other criterion, to compare with.

    Measured beside `tiny`: docs/results.md. Time: that of `tiny`.

        sparse-detr train tiny_objectness --data.train-annotations runs/shapes/train.json ...
    """
    return _tiny_variant("tiny_objectness", token_criterion="objectness")


def tiny_detr() -> RunConfig:
    """DETR in the size of `tiny`: full attention on the coarsest map, learned queries, no references.

    No published number: it wants far longer training than `tiny`. Time: not measured.

        sparse-detr train tiny_detr --data.train-annotations runs/shapes/train.json ...
    """
    return _tiny_variant(
        "tiny_detr",
        attention="full",
        levels=1,
        query_source="learned",
        box_refinement=False,
        shared_heads=True,
        keep_ratio=1.0,
        encoder_auxiliary_loss=False,
    )


def _tiny_variant(name: str, **model: Any) -> RunConfig:
    base = tiny()
    return replace(base, name=name, output=f"runs/{name}", model=replace(base.model, **model))


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
