"""A batch of more than 2^31 numbers: images lie at 64-bit offsets.

Without the value's gradient: writing its 4.3 GB (in place, in float32: 8.6 GB) takes longer than all other tests here.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_detr.ops.deformable_attention import backend

IMAGES, SIDE, HEADS, CHANNELS = 129, 512, 2, 32  # an image has 2^24 numbers: the last one starts at the 2^31st
SHAPES = [SIDE, SIDE]


def _arguments(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """value, locations, weights, gradient. The value is reserved, not filled: pages that nobody reads cost nothing."""
    generator = torch.Generator().manual_seed(0)
    value = torch.empty(IMAGES, SIDE * SIDE, HEADS, CHANNELS, dtype=dtype)
    locations = torch.tensor([[0.5, 0.5], [SIDE - 1.25, SIDE - 0.75]]).div(SIDE).expand(IMAGES, 1, HEADS, 1, 2, 2)
    for image in (0, -1):
        for rows in (slice(0, 1), slice(-SIDE - 2, None)):
            cells = value[image, rows]
            cells.copy_(torch.randn(cells.shape, generator=generator))
    gradient = torch.randn(IMAGES, 1, HEADS * CHANNELS, generator=generator).to(dtype)
    return value, locations.contiguous(), torch.ones(IMAGES, 1, HEADS, 1, 2), gradient


@pytest.mark.skipif(backend() != "native", reason="the op is not compiled here")
@pytest.mark.parametrize("image", [0, IMAGES - 1])
def test_output_and_gradients_of_the_samples_of_the_first_and_the_last_image(image: int) -> None:
    value, *samples, gradient = _arguments(torch.bfloat16)
    output = torch.ops.sparse_detr.deformable_attention(value, SHAPES, *samples)
    alone = slice(image, image + 1)
    of_one = [sample[alone] for sample in samples]
    assert torch.equal(output[alone], torch.ops.sparse_detr.deformable_attention(value[alone], SHAPES, *of_one))
    assert output[alone].any()
    backward = torch.ops.sparse_detr.deformable_attention_backward
    found = backward(gradient, value, SHAPES, *samples, False, True)
    wanted = backward(gradient[alone], value[alone], SHAPES, *of_one, False, True)
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        assert torch.equal(ours[alone], theirs)
        assert theirs.any()
