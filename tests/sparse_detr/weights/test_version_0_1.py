"""A model folder that version 0.1 wrote, and what that version computed with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sparse_detr import BackboneConfig, Classes, ImageBatch, ModelConfig, SparseDetr
from sparse_detr.records import ImageSize

CONFIG = ModelConfig(
    num_classes=2,
    backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=5),
    channels=32,
    heads=2,
    levels=3,
    points=1,
    encoder_layers=2,
    decoder_layers=1,
    feedforward_channels=8,
    queries=5,
    keep_ratio=0.4,
    dropout=0.0,
)


def test_it_loads_and_gives_the_same_output(version_0_1: Path) -> None:
    model = SparseDetr.from_pretrained(version_0_1 / "checkpoint" / "model")
    assert model.config == CONFIG
    assert model.classes == Classes(names=("kettle", "Ключ"), category_ids=(3, 90))
    assert model.image_size == ImageSize(short_side=64, max_side=80)
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 80), dtype=np.float32))
    with torch.no_grad():
        output = model(ImageBatch.from_list([pixels[0], pixels[1, :, :48]]))
    expected = np.load(version_0_1 / "expected.npz")
    # float32 of another machine: the order of sums differs.
    np.testing.assert_allclose(output.logits.numpy(), expected["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(output.boxes.numpy(), expected["boxes"], rtol=0, atol=1e-5)
