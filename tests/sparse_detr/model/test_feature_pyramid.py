"""Projection to tokens: added levels, padding of each level, valid ratios."""

from __future__ import annotations

import torch

from sparse_detr.model.feature_pyramid import FeatureProjection


def maps(height: int, width: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, c, height // s, width // s) for c, s in ((8, 8), (12, 16), (16, 32)))


def test_shapes_padding_and_valid_ratios() -> None:
    projection = FeatureProjection((8, 12, 16), 32, 4)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, 32:] = True
    padding[1, :, 48:] = True
    pyramid = projection(maps(64, 96), padding)
    assert pyramid.shapes == ((8, 12), (4, 6), (2, 3), (1, 2))
    assert pyramid.tokens.shape == pyramid.position.shape == (2, 96 + 24 + 6 + 2, 32)
    assert not pyramid.padding[0].any()
    assert (~pyramid.padding[1]).sum().item() == 4 * 6 + 2 * 3 + 1 * 2 + 1
    torch.testing.assert_close(pyramid.valid_ratios[0], torch.ones(4, 2))
    torch.testing.assert_close(
        pyramid.valid_ratios[1], torch.tensor([[0.5, 0.5], [0.5, 0.5], [2 / 3, 0.5], [0.5, 1.0]])
    )


def test_float64_throughout_in_a_model_of_float64() -> None:
    projection = FeatureProjection((8, 12, 16), 32, 4).double()
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    pyramid = projection(tuple(level.double() for level in maps(64, 96)), padding)
    assert pyramid.tokens.dtype == pyramid.position.dtype == pyramid.valid_ratios.dtype == torch.float64


def test_the_fourth_level_comes_from_the_raw_map_and_the_fifth_from_the_fourth() -> None:
    projection = FeatureProjection((8, 12, 16), 32, 5)
    seen = {}
    for index, part in enumerate(projection.projections):
        part.register_forward_hook(lambda _, inputs, output, i=index: seen.__setitem__(i, (inputs[0], output)))
    features = maps(64, 96)
    projection(features, torch.zeros(2, 64, 96, dtype=torch.bool))
    assert seen[3][0] is features[-1]
    assert seen[4][0] is seen[3][1]


def test_level_embedding_tells_levels_apart() -> None:
    projection = FeatureProjection((8, 12, 16), 32, 3)
    features = maps(32, 32)
    padding = torch.zeros(2, 32, 32, dtype=torch.bool)
    before = projection(features, padding).position
    with torch.no_grad():
        projection.level_embedding[1] += 1
    difference = projection(features, padding).position - before
    torch.testing.assert_close(difference[0, :, 0], torch.tensor([0.0] * 16 + [1.0] * 4 + [0.0]))
