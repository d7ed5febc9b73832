"""The dense relatives: Deformable DETR with learned queries, and with top-k queries and refinement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_detr import SparseDetr
from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.criterion import Criterion


def aligned(rows: Tensor, tokens: Tensor | None) -> Tensor:
    """Rows in the order of their token, where they have one."""
    if tokens is None:
        return rows
    return torch.stack([row[order] for row, order in zip(rows, tokens.argsort(1), strict=True)])


@pytest.mark.parametrize("name", ["r50_deformable_plain", "r50_efficient"])
def test_predictions_and_losses(name: str, recording: Callable[[str], Any]) -> None:
    recorded = recording(name)
    model = SparseDetr.from_original(recorded.state)
    assert not model.config.sparse
    with torch.no_grad():
        output = model(recorded.images("AB"), with_auxiliary=True)
        report = Criterion(LossConfig())(output, recorded.targets("AB"))
    tokens = None if output.query_tokens is None else recorded.array("AB", "enc_topk_proposals")
    for ours, key, tolerance in (
        (output.logits, "pred_logits", 1e-4),
        (output.boxes, "pred_boxes", 1e-5),
        (output.decoder_auxiliary[2].boxes, "aux2_boxes", 1e-5),
    ):
        theirs = aligned(recorded.array("AB", key), tokens)
        torch.testing.assert_close(aligned(ours, output.query_tokens), theirs, atol=tolerance, rtol=0)
    losses = {key: value for key, value in recorded.meta["AB/losses"].items() if key.startswith("loss")}
    assert set(report.terms) == set(losses)
    for key, value in report.terms.items():
        assert value.item() == pytest.approx(losses[key], rel=1e-4), key
