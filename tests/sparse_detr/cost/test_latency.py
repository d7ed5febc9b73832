"""Measured latency: what is run, and what is said about it. No time is asserted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sparse_detr.cost.latency import LatencyConfig, machine_name, measure_latency
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError
from sparse_detr.model.config import BackboneConfig, ModelConfig

CONFIG = ModelConfig(
    backbone=BackboneConfig(name="resnet_tiny", norm="group_norm"), channels=32, encoder_layers=1, decoder_layers=1,
    feedforward_channels=32, queries=5, keep_ratio=0.5,
)  # fmt: skip


def test_runs_the_model_as_told_and_says_on_what() -> None:
    model = SparseDetr(CONFIG)
    seen: list[tuple[Any, bool, int]] = []

    def record(module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
        batch, ratio = inputs
        seen.append(((tuple(batch.pixels.shape), ratio), module.training, torch.get_num_threads()))

    model.register_forward_hook(record, with_kwargs=True)
    before = torch.get_num_threads()
    config = LatencyConfig(runs=3, warm_up=2, batch=2, threads=before + 1, device="cpu", precision="bfloat16")
    latency = measure_latency(model, 50, 66, config, 0.2)
    assert seen == [(((2, 3, 50, 66), 0.2), False, before + 1)] * 5
    assert torch.get_num_threads() == before
    assert 0 < latency.fastest <= latency.median <= latency.slowest
    assert (latency.runs, latency.batch, latency.precision) == (3, 2, "bfloat16")
    assert latency.torch == torch.__version__
    assert f", {before + 1} threads" in latency.machine


def test_precision_is_that_of_autocast() -> None:
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = SparseDetr(CONFIG)
        seen = []
        model.decoder.heads[0].classes.register_forward_hook(
            lambda _m, _i, output, seen=seen: seen.append(output.dtype)
        )
        measure_latency(model, 80, 80, LatencyConfig(runs=1, warm_up=0, device="cpu", precision=precision))
        assert seen == [dtype]


def test_machine_name_tells_processor_and_threads() -> None:
    name = machine_name(torch.device("cpu"))
    assert name.endswith(("thread", "threads"))
    assert len(name.split(",")[0]) > 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("runs", 0), ("batch", 0), ("warm_up", -1), ("threads", 0)],
)
def test_what_cannot_be_measured_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field}: "):
        LatencyConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="device: 'gpu', but torch finds no GPU"):
        measure_latency(SparseDetr(CONFIG), 80, 80, LatencyConfig(device="gpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_timed_with_events() -> None:
    latency = measure_latency(SparseDetr(CONFIG), 80, 80, LatencyConfig(device="gpu", runs=3))
    assert latency.machine == torch.cuda.get_device_name()
    assert latency.median > 0
