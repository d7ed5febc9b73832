"""A checkpoint of training that version 0.1 wrote, and how that version went on from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.recipes.optimizer import OptimizerConfig
from pipelines.train.engine.broken_images import BrokenLimit
from pipelines.train.engine.checkpoint import load_checkpoint
from pipelines.train.engine.loop import TrainLoop
from sparse_detr.detector import SparseDetr
from sparse_detr.losses.criterion import Criterion
from sparse_detr.records import Batch, ImageBatch, Targets


def make_batch() -> Batch:
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 80), dtype=np.float32))
    targets = tuple(
        Targets(labels=torch.tensor([label]), boxes=torch.tensor([box]))
        for label, box in ((0, (0.5, 0.5, 0.25, 0.5)), (1, (0.25, 0.5, 0.25, 0.25)))
    )
    images = ImageBatch.from_list([pixels[0], pixels[1, :, :48]])
    return Batch(images=images, targets=targets, image_ids=(1, 2), original_sizes=((64, 80), (48, 80)))


def test_it_loads_whole(version_0_1: Path) -> None:
    model, state = load_checkpoint(version_0_1 / "checkpoint")
    assert (state.epoch, state.step, state.average_updates) == (1, 2, 2)
    assert state.history == [{"epoch": 1.0, "loss": 12.5, "ap": 0.25}]
    assert state.weights is not None
    assert state.weights.keys() == model.state_dict().keys()
    assert {group["name"] for group in state.optimizer["param_groups"]} == {"offsets", "rest"}


def test_training_goes_on_as_it_would_have_there(version_0_1: Path) -> None:
    config = RunConfig(
        model=load_checkpoint(version_0_1 / "checkpoint")[0].config,
        optimizer=OptimizerConfig(lr=1e-3),
        training=TrainingConfig(epochs=2, global_batch=2, ema_decay=0.9),
    )
    data = SimpleNamespace(train=[make_batch()] * 2, broken=BrokenLimit())
    loop = TrainLoop(config, SparseDetr(config.model), Criterion(config.loss), data)  # type: ignore[arg-type]
    loop.restore(version_0_1 / "checkpoint")
    loop.network.train()
    losses = [float(loop.train_step([make_batch()]).total.detach()) for _ in range(2)]

    expected = np.load(version_0_1 / "expected.npz")
    assert loop.step == 4
    # The second loss depends on the moments of the optimizer, the sums on the average and its count of updates.
    assert losses == pytest.approx(expected["losses"].tolist(), rel=1e-4)
    sums = [value.double().sum().item() for value in loop.eval_model.parameters()]
    np.testing.assert_allclose(sums, expected["average"], rtol=1e-3, atol=1e-3)
