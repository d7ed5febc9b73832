"""An encoder layer in a process of its own."""

from __future__ import annotations

import pytest

from pipelines.bench.model.encoder_run import run_encoder_layer, token_shapes
from pipelines.bench.model.growth import attention_map_bytes, kinds
from sparse_detr.errors import ConfigError
from sparse_detr.model.config import ModelConfig

MIB = 2**20


def test_token_shapes_are_those_of_the_model() -> None:
    assert token_shapes(ModelConfig(), 801) == ((101, 101), (51, 51), (26, 26), (13, 13))
    assert token_shapes(kinds()["DETR, stride 32"].config, 801) == ((26, 26),)


@pytest.mark.slow
def test_memory_is_really_limited_and_really_runs_out() -> None:
    """The map of 1024 tokens takes 32 MiB, and its softmax as much; the fused kernel holds neither."""
    config = kinds()["DETR, stride 32"].config
    assert attention_map_bytes(config, 1024) == 32 * MIB
    enough = run_encoder_layer(config, 1024, limit_bytes=2048 * MIB, keep_map=True)
    assert enough.fits
    assert enough.tokens == 1024
    assert enough.peak_bytes is not None
    assert enough.peak_bytes > 64 * MIB
    few = run_encoder_layer(config, 2048, limit_bytes=512 * MIB, keep_map=True)
    assert (few.seconds, few.peak_bytes, few.fits) == (None, None, False)
    assert run_encoder_layer(config, 2048, limit_bytes=512 * MIB, keep_map=False).fits


def test_a_side_that_leaves_no_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="side: 31"):
        run_encoder_layer(ModelConfig(), 31, limit_bytes=MIB)
