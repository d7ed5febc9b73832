"""Recorded tensors of the authors' code and a small random output, for the tests of the losses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_detr.records import DecoderAttention, Output, Predictions, Targets, TokenSelection

SHAPES = ((6, 8), (3, 4), (2, 2))


@dataclass(frozen=True)
class Golden:
    """One recorded case: arrays, losses, targets."""

    arrays: dict[str, torch.Tensor]
    losses: dict[str, float]
    targets: list[Targets]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return tuple((h, w) for h, w in self.arrays["spatial_shapes"].tolist())

    def output(self) -> Output:
        return Output(
            logits=self.arrays["pred_logits"],
            boxes=self.arrays["pred_boxes"],
            kept_tokens=self.arrays["backbone_topk_proposals"],
            query_tokens=self.arrays["enc_topk_proposals"],
            shapes=self.shapes,
            token_padding=self.arrays["mask_flatten"],
        )


@pytest.fixture(params=["AB", "B"])
def golden(request: pytest.FixtureRequest, shared: Path) -> Golden:
    """Losses of the authors' Sparse DETR (keep ratio 0.1) for a padded batch of two and for one image."""
    case: str = request.param
    stored = np.load(shared / "golden" / "r50_sparse_rho0.1.npz")
    arrays = {k.split("/")[1]: torch.from_numpy(stored[k]) for k in stored.files if k.startswith(f"{case}/")}
    meta = json.loads((shared / "golden" / "r50_sparse_rho0.1.meta.json").read_text())
    rule = _load_rule(shared / "golden" / "rule.py")
    targets = [Targets(labels=torch.from_numpy(n), boxes=torch.from_numpy(b)) for n, b in map(rule.target, case)]
    return Golden(arrays=arrays, losses=meta[f"{case}/losses"], targets=targets)


@pytest.fixture
def core(shared: Path) -> dict[str, torch.Tensor]:
    """The recorded accumulation of the decoder attention map."""
    return {key: torch.from_numpy(value) for key, value in np.load(shared / "golden" / "core.npz").items()}


@pytest.fixture
def random_output() -> Callable[[int], Output]:
    """A sparse output of 5 classes with every set of predictions; all leaves want gradients."""
    return _random_output


def _random_output(images: int) -> Output:
    make = torch.Generator().manual_seed(images)
    tokens = sum(h * w for h, w in SHAPES)

    def predictions(count: int) -> Predictions:
        boxes = torch.rand((images, count, 4), generator=make) * 0.5 + 0.2
        logits = torch.randn((images, count, 5), generator=make)
        return Predictions(logits=logits.requires_grad_(), boxes=boxes.requires_grad_())

    last = predictions(9)
    kept = torch.rand((images, tokens), generator=make).topk(7, dim=1).indices
    return Output(
        logits=last.logits,
        boxes=last.boxes,
        kept_tokens=kept,
        query_tokens=None,
        shapes=SHAPES,
        token_padding=torch.zeros((images, tokens), dtype=torch.bool),
        selection=TokenSelection(
            saliency=torch.randn((images, tokens), generator=make).requires_grad_(),
            kept=kept,
            counts=torch.full((images,), 7),
        ),
        decoder_auxiliary=(predictions(9), predictions(9)),
        encoder_auxiliary=(predictions(7),),
        proposals=predictions(tokens),
        decoder_attention=DecoderAttention(
            locations=torch.rand((images, 3, 9, 2, 3, 2, 2), generator=make),
            weights=torch.rand((images, 3, 9, 2, 3, 2), generator=make),
        ),
    )


def _load_rule(path: Path) -> Any:
    if "golden_rule" not in sys.modules:
        spec = spec_from_file_location("golden_rule", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["golden_rule"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["golden_rule"])
    return sys.modules["golden_rule"]
