"""Three members of the family: every tensor, loss and gradient norm that the authors' code recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_detr import Output, SparseDetr
from sparse_detr.decoder_attention import decoder_attention_map
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.criterion import Criterion, LossReport
from sparse_detr.losses.matcher import match
from sparse_detr.losses.token_scoring import dam_target
from sparse_detr.model.proposals import Queries, proposal_grid
from sparse_detr.records import DecoderAttention, FeaturePyramid
from sparse_detr.weights.authors.names import canonical, original_name

CASES = ("AB", "B")
SPARSE = [("r50_sparse_rho0.1", case) for case in CASES]
TWO_STAGE = [("r50_efficient", case) for case in CASES] + SPARSE
ALL = [("r50_deformable_plain", case) for case in CASES] + TWO_STAGE
on_two_stage = pytest.mark.parametrize("run", TWO_STAGE, indirect=True)
on_sparse = pytest.mark.parametrize("run", SPARSE, indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Run:
    """Our forward, losses and gradients of one case, with what was recorded."""

    case: str
    model: SparseDetr
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
        if self.output.query_tokens is None:
            return ours, self.recorded(key)
        return by_token(ours, self.output.query_tokens), by_token(
            self.recorded(key), self.recorded("enc_topk_proposals")
        )

    def by_every_15th_query(self, ours: Tensor, key: str) -> tuple[Tensor, Tensor]:
        """The same where every 15th query was recorded: those of them that are the same token."""
        if self.output.query_tokens is None:
            return ours[:, ::15], self.recorded(key)
        same = (self.output.query_tokens == self.recorded("enc_topk_proposals"))[:, ::15]
        assert same.float().mean() > 0.9, "the order of the tokens differs by more than near-ties"
        return ours[:, ::15][same], self.recorded(key)[same]

    def by_kept(self, ours: Tensor, key: str) -> tuple[Tensor, Tensor]:
        """Rows of kept tokens, in the order of their token."""
        assert self.output.kept_tokens is not None
        return by_token(ours, self.output.kept_tokens), by_token(
            self.recorded(key), self.recorded("backbone_topk_proposals")
        )


def by_token(rows: Tensor, tokens: Tensor) -> Tensor:
    return torch.stack([row[order] for row, order in zip(rows, tokens.argsort(1), strict=True)])


@pytest.fixture(scope="module")
def model_of(recording: Callable[[str], Any]) -> Callable[[str], tuple[Any, SparseDetr]]:
    """A function from the name of a configuration to its recording and our model, made once."""
    made: dict[str, tuple[Any, SparseDetr]] = {}

    def make(name: str) -> tuple[Any, SparseDetr]:
        if name not in made:
            found = recording(name)
            made[name] = found, SparseDetr.from_original(found.state, 0.1 if "sparse" in name else None)
        return made[name]

    return make


@pytest.fixture(scope="module", params=ALL, ids=lambda param: "-".join(param))
def run(request: pytest.FixtureRequest, model_of: Callable[[str], tuple[Any, SparseDetr]]) -> Run:
    name, case = request.param
    recording, model = model_of(name)
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
    output = model(recording.images(case), with_auxiliary=True)
    for hook in hooks:
        hook.remove()
    report = Criterion(LossConfig())(output, recording.targets(case))
    model.zero_grad()
    report.total.backward()
    norms = {
        original_name(name, model.config): parameter.grad.double().norm().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Run(
        case=case, model=model, output=output, report=report, gradient_norms=norms, seen=seen, recording=recording
    )


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


@on_sparse
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


@on_sparse
def test_encoder_auxiliary(run: Run) -> None:
    assert len(run.output.encoder_auxiliary) == 5
    close(proposal_grid(run.pyramid).logits[:, ::4], run.recorded("output_proposals_unact_t4"), 1e-5)
    for layer, predictions in enumerate(run.output.encoder_auxiliary):
        close(*run.by_kept(predictions.boxes, f"encaux{layer}_boxes"), 1e-5)
        recorded = run.recorded(f"encaux{layer}_logits_t10")
        rows = predictions.logits[:, ::10]
        same = run.output.kept_tokens == run.recorded("backbone_topk_proposals")
        assert same.float().mean() > 0.9, "the order of the tokens differs by more than near-ties"
        close(rows[same[:, ::10]], recorded[same[:, ::10]], 1e-4)


@on_two_stage
def test_proposals(run: Run) -> None:
    proposals = run.output.proposals
    assert proposals is not None
    close(proposals.logits[:, ::16], run.recorded("enc_logits_t16"), 1e-4)
    close(proposals.logits.amax(-1), run.recorded("enc_fg_score"), 1e-4)
    close(proposals.boxes[:, ::4], run.recorded("enc_boxes_t4"), 1e-5)
    assert run.output.query_tokens is not None
    for ours, recorded in zip(run.output.query_tokens, run.recorded("enc_topk_proposals"), strict=True):
        assert set(ours.tolist()) == set(recorded.tolist())


def test_queries(run: Run) -> None:
    close(*run.by_query(run.queries.references, "dec_init_ref"), 1e-5)
    close(*run.by_every_15th_query(run.queries.content, "dec_tgt_q15"), 1e-4)
    close(*run.by_every_15th_query(run.queries.position, "dec_query_pos_q15"), 1e-4)
    close(*run.by_every_15th_query(run.seen["last_layer"][0], "hs_last_q15"), 1e-4)


def test_predictions(run: Run) -> None:
    close(*run.by_query(run.output.logits, "pred_logits"), 1e-4)
    close(*run.by_query(run.output.boxes, "pred_boxes"), 1e-5)
    assert len(run.output.decoder_auxiliary) == 5
    for layer, predictions in enumerate(run.output.decoder_auxiliary):
        close(*run.by_query(predictions.boxes, f"aux{layer}_boxes"), 1e-5)
        close(*run.by_every_15th_query(predictions.logits, f"aux{layer}_logits_q15"), 1e-4)


@on_two_stage
def test_refined_references(run: Run) -> None:
    boxes = torch.stack([p.boxes for p in (*run.output.decoder_auxiliary, run.output)])
    for ours, recorded in zip(boxes, run.recorded("inter_refs"), strict=True):
        tokens = run.output.query_tokens
        assert tokens is not None
        close(by_token(ours, tokens), by_token(recorded, run.recorded("enc_topk_proposals")), 1e-5)


def test_matching(run: Run) -> None:
    output, targets = run.output, run.recording.targets(run.case)
    matching = match(output.logits, output.boxes, targets, (output.logits.shape[1],), LossConfig())
    first = 0
    for image, target in enumerate(targets):
        rows = matching.images == image
        ours, theirs = matching.predictions[rows], run.recorded(f"match{image}")
        if output.query_tokens is None:
            matched = theirs[0]
        else:
            ours, matched = output.query_tokens[image, ours], run.recorded("enc_topk_proposals")[image, theirs[0]]
        objects = matching.objects[rows] - first
        assert set(zip(ours.tolist(), objects.tolist(), strict=True)) == set(
            zip(matched.tolist(), theirs[1].tolist(), strict=True)
        )
        first += len(target.labels)


def test_detections(run: Run) -> None:
    detections = postprocess(run.output, [(480, 640)] * len(run.case))
    for row, found in enumerate(detections):
        close(found.scores, run.recorded("post_scores")[row], 1e-4)
        assert (found.labels == run.recorded("post_labels")[row]).float().mean() > 0.95
        same = found.labels == run.recorded("post_labels")[row]
        close(found.boxes[same], run.recorded("post_boxes_480x640")[row][same], 640 * 1e-5)


def test_decoder_attention_map(run: Run) -> None:
    attention = run.output.decoder_attention
    assert attention is not None
    dam = decoder_attention_map(attention, run.output.shapes)
    close(dam, run.recorded("dam_sum"), 1e-5 * run.recorded("dam_sum").max().item())
    for layer, recorded in enumerate(run.recorded("dam_per_layer_mass").unbind(1)):
        own = slice(layer, layer + 1)
        part = DecoderAttention(locations=attention.locations[:, own], weights=attention.weights[:, own])
        mass = decoder_attention_map(part, run.output.shapes).sum(1)
        close(mass, recorded, 1e-5 * recorded.max().item())


@on_sparse
def test_label_of_the_scoring_network(run: Run) -> None:
    attention, selection = run.output.decoder_attention, run.output.selection
    assert attention is not None
    assert selection is not None
    dam = decoder_attention_map(attention, run.output.shapes)
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


def test_gradient_norms(run: Run) -> None:
    norms = run.recording.meta[f"{run.case}/grad_norms"]
    recorded = {canonical(name, run.model.config): norm for name, norm in norms.items() if norm is not None}
    assert set(run.gradient_norms) == set(recorded)
    for name, norm in recorded.items():
        assert run.gradient_norms[name] == pytest.approx(norm, rel=1e-3), name
    total = torch.tensor(list(run.gradient_norms.values())).norm().item()
    assert total == pytest.approx(run.recording.meta[f"{run.case}/grad_total_norm"], rel=1e-3)
