"""The sparse encoder: what it updates, and that keeping everything is the dense encoder."""

from __future__ import annotations

import torch

from sparse_detr import BackboneConfig, ModelConfig
from sparse_detr.model.build import build_encoder
from sparse_detr.records import FeaturePyramid, TokenSelection

CONFIG = ModelConfig(
    num_classes=3,
    backbone=BackboneConfig(name="resnet_tiny"),
    channels=32,
    heads=4,
    levels=3,
    points=2,
    encoder_layers=3,
    decoder_layers=1,
    feedforward_channels=64,
    dropout=0.0,
)
SHAPES = ((4, 4), (2, 2), (1, 1))


def pyramid(batch: int) -> FeaturePyramid:
    torch.manual_seed(1)
    tokens = torch.randn(batch, 21, 32)
    return FeaturePyramid(
        tokens=tokens,
        position=torch.randn_like(tokens),
        padding=torch.zeros(batch, 21, dtype=torch.bool),
        valid_ratios=torch.ones(batch, 3, 2),
        shapes=SHAPES,
    )


def selection(rows: list[list[int]], counts: list[int]) -> TokenSelection:
    return TokenSelection(saliency=torch.zeros(len(rows), 21), kept=torch.tensor(rows), counts=torch.tensor(counts))


def test_only_kept_tokens_change() -> None:
    encoder, inputs = build_encoder(CONFIG), pyramid(2)
    chosen = selection([[3, 0, 20], [7, 8, 9]], [3, 2])
    memory, auxiliary = encoder(inputs, chosen, torch.zeros(2, 21, 4), True)
    changed = (memory != inputs.tokens).any(-1)
    assert changed[0].nonzero().flatten().tolist() == [0, 3, 20]
    assert changed[1].nonzero().flatten().tolist() == [7, 8]
    assert [tuple(predictions.logits.shape) for predictions in auxiliary] == [(2, 3, 3)] * 2


def test_keeping_every_token_is_the_dense_encoder() -> None:
    encoder, inputs = build_encoder(CONFIG), pyramid(1)
    order = torch.randperm(21).tolist()
    logits = torch.randn(1, 21, 4)
    sparse = encoder(inputs, selection([order], [21]), logits, True)
    dense = encoder(inputs, None, logits, True)
    torch.testing.assert_close(sparse.memory, dense.memory)
    for ours, theirs in zip(sparse.auxiliary, dense.auxiliary, strict=True):
        torch.testing.assert_close(ours.boxes, theirs.boxes[:, order])


def test_images_of_a_batch_do_not_mix() -> None:
    encoder, both = build_encoder(CONFIG), pyramid(2)
    chosen = selection([[3, 0, 20], [7, 8, 9]], [3, 3])
    memory = encoder(both, chosen, torch.zeros(2, 21, 4), False).memory
    second = FeaturePyramid(
        tokens=both.tokens[1:],
        position=both.position[1:],
        padding=both.padding[1:],
        valid_ratios=both.valid_ratios[1:],
        shapes=SHAPES,
    )
    alone = encoder(second, selection([[7, 8, 9]], [3]), torch.zeros(1, 21, 4), False)
    torch.testing.assert_close(memory[1:], alone.memory)
    assert alone.auxiliary == ()
