"""Sparse DETR, ResNet-50, keep ratio 0.1: every tensor, loss and gradient norm that the authors' code recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_detr import Output, SparseDetr
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.losses.attention_map import dam_target
from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.criterion import Criterion, LossReport
from sparse_detr.model.original_names import canonical, original_name
from sparse_detr.model.proposals import Queries
from sparse_detr.ops.attention_map import decoder_attention_map
from sparse_detr.records import FeaturePyramid

NAME = "r50_sparse_rho0.1"
CASES = ("AB", "B")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Run:
    """Our forward, losses and gradients of one case, with what was recorded."""

    case: str
    output: Output
    report: LossReport
    gradient_norms: dict[str, float]
    seen: dict[str, Any]
    """Outputs of parts, caught on the way."""
    recording: Any

    def recorded(self, key: str) -> Tensor:
        return self.recording.array(self.case, key)

    @property
    def pyramid(self) -> FeaturePyramid:
        return self.seen["feature_projection"]

    @property
    def queries(self) -> Queries:
        return self.seen["queries"]

    def by_query(self, ours: Tensor, key: str) -> tuple[Tensor, Tensor]:
        """Ours and the recorded rows in the order of their token, as ties may swap neighbours."""
        assert self.output.query_tokens is not None
        return by_token(ours, self.output.query_tokens), by_token(
            self.recorded(key), self.recorded("enc_topk_proposals")
        )

    def by_kept(self, ours: Tensor, key: str) -> tuple[Tensor, Tensor]:
        """The same for rows of kept tokens."""
        assert self.output.kept_tokens is not None
        return by_token(ours, self.output.kept_tokens), by_token(
            self.recorded(key), self.recorded("backbone_topk_proposals")
        )


def by_token(rows: Tensor, tokens: Tensor) -> Tensor:
    return torch.stack([row[order] for row, order in zip(rows, tokens.argsort(1), strict=True)])


@pytest.fixture(scope="module")
def rho10(recording: Callable[[str], Any]) -> Any:
    return recording(NAME)


@pytest.fixture(scope="module")
def model(rho10: Any) -> SparseDetr:
    return SparseDetr.from_original(rho10.state, keep_ratio=0.1)


@pytest.fixture(scope="module", params=CASES)
def run(request: pytest.FixtureRequest, rho10: Any, model: SparseDetr) -> Run:
    case: str = request.param
    seen: dict[str, Any] = {}
    parts = {
        "backbone": model.backbone,
        "feature_projection": model.feature_projection,
        "encoder": model.encoder,
        "queries": model.queries,
        "last_layer": model.decoder.layers[-1],
    }
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        for name, part in parts.items()
    ]
    output = model(rho10.images(case), with_auxiliary=True)
    for hook in hooks:
        hook.remove()
    report = Criterion(LossConfig())(output, rho10.targets(case))
    model.zero_grad()
    report.total.backward()
    norms = {
        original_name(name, model.config): parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Run(case=case, output=output, report=report, gradient_norms=norms, seen=seen, recording=rho10)


def close(ours: Tensor, recorded: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach(), recorded.to(ours.dtype), atol=tolerance, rtol=0)


def test_backbone_maps(run: Run) -> None:
    for level, features in enumerate(run.seen["backbone"]):
        scale = run.recorded(f"backbone{level}_sub").abs().max().item()
        close(features[:, ::64, ::5, ::7], run.recorded(f"backbone{level}_sub"), 1e-5 * scale)
        mean, std = run.recorded(f"backbone{level}_mean_std").tolist()
        assert features.mean().item() == pytest.approx(mean, rel=1e-4)
        assert features.std().item() == pytest.approx(std, rel=1e-3)


def test_feature_pyramid(run: Run) -> None:
    pyramid = run.pyramid
    assert pyramid.shapes == tuple(map(tuple, run.recorded("spatial_shapes").tolist()))
    assert torch.equal(pyramid.padding, run.recorded("mask_flatten"))
    close(pyramid.valid_ratios, run.recorded("valid_ratios"), 1e-6)
    image = ~pyramid.padding[:, ::32]
    close(pyramid.tokens[:, ::32][image], run.recorded("src_flatten_t32")[image], 1e-5)
    close(pyramid.position[:, ::32][image], run.recorded("lvl_pos_t32")[image], 1e-5)


def test_saliency_and_kept_tokens(run: Run) -> None:
    selection = run.output.selection
    assert selection is not None
    close(selection.saliency, run.recorded("mask_prediction"), 1e-5)
    assert selection.counts.tolist() == run.recorded("sparse_token_nums").tolist()
    for ours, recorded in zip(selection.kept, run.recorded("backbone_topk_proposals"), strict=True):
        assert set(ours.tolist()) == set(recorded.tolist())


def test_memory(run: Run) -> None:
    image = ~run.pyramid.padding[:, ::16]
    close(run.seen["encoder"].memory[:, ::16][image], run.recorded("memory_t16")[image], 1e-4)


def test_encoder_auxiliary(run: Run) -> None:
    assert len(run.output.encoder_auxiliary) == 5
    for layer, predictions in enumerate(run.output.encoder_auxiliary):
        close(*run.by_kept(predictions.boxes, f"encaux{layer}_boxes"), 1e-5)
        recorded = run.recorded(f"encaux{layer}_logits_t10")
        rows = predictions.logits[:, ::10]
        same = run.output.kept_tokens == run.recorded("backbone_topk_proposals")
        assert same.float().mean() > 0.9, "the order of the tokens differs by more than near-ties"
        close(rows[same[:, ::10]], recorded[same[:, ::10]], 1e-4)


def test_proposals(run: Run) -> None:
    proposals = run.output.proposals
    assert proposals is not None
    close(proposals.logits[:, ::16], run.recorded("enc_logits_t16"), 1e-4)
    close(proposals.logits.amax(-1), run.recorded("enc_fg_score"), 1e-4)
    close(proposals.boxes[:, ::4], run.recorded("enc_boxes_t4"), 1e-5)


def test_queries(run: Run) -> None:
    assert run.output.query_tokens is not None
    for ours, recorded in zip(run.output.query_tokens, run.recorded("enc_topk_proposals"), strict=True):
        assert set(ours.tolist()) == set(recorded.tolist())
    close(*run.by_query(run.queries.references, "dec_init_ref"), 1e-5)
    same = (run.output.query_tokens == run.recorded("enc_topk_proposals"))[:, ::15]
    close(run.queries.content[:, ::15][same], run.recorded("dec_tgt_q15")[same], 1e-4)
    close(run.queries.position[:, ::15][same], run.recorded("dec_query_pos_q15")[same], 1e-4)
    close(run.seen["last_layer"][0][:, ::15][same], run.recorded("hs_last_q15")[same], 1e-4)


def test_predictions(run: Run) -> None:
    close(*run.by_query(run.output.logits, "pred_logits"), 1e-4)
    close(*run.by_query(run.output.boxes, "pred_boxes"), 1e-5)
    for layer, predictions in enumerate(run.output.decoder_auxiliary):
        close(*run.by_query(predictions.boxes, f"aux{layer}_boxes"), 1e-5)


def test_detections(run: Run) -> None:
    detections = postprocess(run.output, [(480, 640)] * len(run.case))
    for row, found in enumerate(detections):
        close(found.scores, run.recorded("post_scores")[row], 1e-4)
        assert (found.labels == run.recorded("post_labels")[row]).float().mean() > 0.95
        same = found.labels == run.recorded("post_labels")[row]
        close(found.boxes[same], run.recorded("post_boxes_480x640")[row][same], 640 * 1e-5)


def test_decoder_attention_map_and_its_label(run: Run) -> None:
    attention, selection = run.output.decoder_attention, run.output.selection
    assert attention is not None
    assert selection is not None
    dam = decoder_attention_map(attention, run.output.shapes)
    close(dam, run.recorded("dam_sum"), 1e-5 * run.recorded("dam_sum").max().item())
    target = dam_target(dam, run.output.token_padding, selection.counts, selection.kept.shape[1])
    assert torch.equal(target.to(torch.uint8), run.recorded("dam_target"))


def test_losses(run: Run) -> None:
    recorded = run.recording.meta[f"{run.case}/losses"]
    names = {name for name in recorded if name.startswith("loss")}
    assert set(run.report.terms) == names
    for name in names:
        assert run.report.terms[name].item() == pytest.approx(recorded[name], rel=1e-4), name
    for name, value in run.report.metrics.items():
        assert float(value) == pytest.approx(recorded[name], rel=1e-4), name
    assert run.report.total.item() == pytest.approx(run.recording.meta[f"{run.case}/total"], rel=1e-4)


def test_gradient_norms(run: Run, model: SparseDetr) -> None:
    norms = run.recording.meta[f"{run.case}/grad_norms"]
    recorded = {canonical(name, model.config): norm for name, norm in norms.items() if norm is not None}
    assert set(run.gradient_norms) == set(recorded)
    for name, norm in recorded.items():
        assert run.gradient_norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-6), name


def test_frozen_parameters(model: SparseDetr, rho10: Any) -> None:
    ours = {original_name(name, model.config): p.requires_grad for name, p in model.named_parameters()}
    recorded = rho10.keys["parameters_named_once"]
    assert ours == {canonical(name, model.config): trained for name, trained in recorded.items()}
