from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from sparse_detr.errors import NotFiniteError
from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.criterion import Criterion, count_boxes
from sparse_detr.records import Predictions, Targets, TokenSelection


def targets_of(*counts):
    make = torch.Generator().manual_seed(7)
    return [
        Targets(labels=torch.randint(5, (n,), generator=make), boxes=torch.rand((n, 4), generator=make) * 0.5 + 0.2)
        for n in counts
    ]


def leaves(output):
    sets = [Predictions(logits=output.logits, boxes=output.boxes), *output.decoder_auxiliary]
    sets += [*output.encoder_auxiliary, output.proposals]
    return [tensor for one in sets for tensor in (one.logits, one.boxes)] + [output.selection.saliency]


def test_equals_the_authors_losses(golden):
    report = Criterion(LossConfig())(golden.output(), golden.targets)
    assert set(report.terms) == {"loss_ce", "loss_bbox", "loss_giou"}
    for name, value in {**report.terms, **report.metrics}.items():
        assert value.item() == pytest.approx(golden.losses[name], rel=1e-5), name
    weighted = sum(w * golden.losses[f"loss_{name}"] for name, w in (("ce", 2), ("bbox", 5), ("giou", 2)))
    assert report.total.item() == pytest.approx(weighted, rel=1e-5)


def test_names_of_all_terms_and_the_weighted_total(random_output):
    report = Criterion(LossConfig(token_scoring_weight=3.0, encoder_auxiliary_weight=0.5))(
        random_output(2), targets_of(3, 1)
    )
    sets = ["", "_0", "_1", "_enc", "_enc_0"]
    expected = {f"loss_{name}{suffix}" for name in ("ce", "bbox", "giou") for suffix in sets}
    assert set(report.terms) == expected | {"loss_mask_prediction"}
    weights = {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2, "loss_mask": 3}
    total = 0.0
    for name, value in report.terms.items():
        weight = weights["_".join(name.split("_")[:2])]
        total += value.item() * weight * (0.5 if "_enc_" in name else 1)
    assert report.total.item() == pytest.approx(total, rel=1e-5)


def test_every_set_is_scored_as_it_is_alone(random_output):
    output, targets = random_output(2), targets_of(3, 2)
    report = Criterion(LossConfig())(output, targets)
    bare = replace(output, decoder_auxiliary=(), encoder_auxiliary=(), proposals=None, selection=None)
    for suffix, one in (("_1", output.decoder_auxiliary[1]), ("_enc", output.proposals)):
        alone = Criterion(LossConfig())(replace(bare, logits=one.logits, boxes=one.boxes), targets)
        for name, value in alone.terms.items():
            assert report.terms[name + suffix].item() == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("counts", [(3, 1), (2, 0), (0, 0)])
def test_finite_and_a_gradient_for_everything(random_output, counts):
    output = random_output(2)
    report = Criterion(LossConfig())(output, targets_of(*counts))
    report.total.backward()
    assert torch.isfinite(report.total)
    for leaf in leaves(output):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
    assert all(torch.isfinite(value) for value in report.terms.values())
    if sum(counts) == 0:
        assert report.terms["loss_bbox"] == report.terms["loss_giou_enc"] == 0
        assert report.terms["loss_ce"] > 0


def test_an_output_of_evaluation_gives_the_main_losses_only(random_output):
    output = replace(
        random_output(1), decoder_auxiliary=(), encoder_auxiliary=(), proposals=None, decoder_attention=None
    )
    report = Criterion(LossConfig())(output, targets_of(2))
    assert set(report.terms) == {"loss_ce", "loss_bbox", "loss_giou"}
    assert set(report.metrics) == {"class_error"}


def test_num_boxes_divides_the_detection_losses(random_output):
    output, targets = random_output(2), targets_of(3, 1)
    given = Criterion(LossConfig())(output, targets, num_boxes=8.0)
    counted = Criterion(LossConfig())(output, targets)
    for name, value in given.terms.items():
        factor = 1 if name == "loss_mask_prediction" else 2
        assert value.item() * factor == pytest.approx(counted.terms[name].item(), rel=1e-5)


def test_float32_under_autocast(random_output):
    output, targets = random_output(1), targets_of(2)
    expected = Criterion(LossConfig())(output, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = Criterion(LossConfig())(output, targets)
    assert report.total.dtype == torch.float32
    assert report.total.item() == expected.total.item()
    half = replace(output, logits=output.logits.bfloat16())
    assert Criterion(LossConfig())(half, targets).total.dtype == torch.float32


def test_float64_where_the_predictions_are(random_output):
    def widened(value):
        if isinstance(value, torch.Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, tuple):
            return tuple(map(widened, value))
        if is_dataclass(value):
            return replace(value, **{field.name: widened(getattr(value, field.name)) for field in fields(value)})
        return value

    output, targets = random_output(1), targets_of(2)
    report = Criterion(LossConfig())(widened(output), targets)
    assert report.total.dtype == torch.float64
    assert all(term.dtype == torch.float64 for term in report.terms.values())
    assert report.total.item() == pytest.approx(Criterion(LossConfig())(output, targets).total.item(), rel=1e-5)


def test_overlap_metrics_of_kept_tokens(random_output):
    output = random_output(1)
    everything = torch.arange(output.token_padding.shape[1])[None]
    selection = TokenSelection(
        saliency=output.selection.saliency, kept=everything, counts=torch.tensor([everything.shape[1]])
    )
    metrics = Criterion(LossConfig())(replace(output, selection=selection), targets_of(1)).metrics
    names = ["all", "0", "1", "2"]
    assert set(metrics) == {"class_error", *(f"corr_mask_attn_map_dec_{name}" for name in names)}
    assert all(metrics[f"corr_mask_attn_map_dec_{name}"].item() == pytest.approx(1) for name in names)


def test_diverged_predictions_are_named(random_output):
    output = random_output(1)
    with torch.no_grad():
        output.proposals.boxes[0, 3, 1] = float("nan")
    with pytest.raises(NotFiniteError, match="boxes: the model's predictions hold NaN"):
        Criterion(LossConfig())(output, targets_of(1))


def test_a_batch_without_objects_divides_by_one(random_output):
    assert count_boxes(targets_of(3, 2)) == 5
    given, counted = (Criterion(LossConfig())(random_output(2), targets_of(0, 0), n) for n in (1.0, None))
    assert {name: value.item() for name, value in given.terms.items()} == {
        name: value.item() for name, value in counted.terms.items()
    }


def test_class_agnostic_proposals_know_one_class(random_output):
    output, targets = random_output(2), targets_of(3, 2)
    ordinary = Criterion(LossConfig())(output, targets)
    report = Criterion(LossConfig())(replace(output, class_agnostic_proposals=True), targets)
    assert list(report.terms) != []
    zeros = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
    bare = replace(output, decoder_auxiliary=(), encoder_auxiliary=(), proposals=None, selection=None)
    alone = Criterion(LossConfig())(replace(bare, logits=output.proposals.logits, boxes=output.proposals.boxes), zeros)
    assert set(report.terms) == set(ordinary.terms)
    for name, value in report.terms.items():
        expected = alone.terms[name.removesuffix("_enc")] if name.endswith("_enc") else ordinary.terms[name]
        assert value.item() == pytest.approx(expected.item(), rel=1e-5), name
    change = sum(
        weight * (report.terms[f"loss_{name}_enc"] - ordinary.terms[f"loss_{name}_enc"]).item()
        for name, weight in (("ce", 2), ("bbox", 5), ("giou", 2))
    )
    assert report.total.item() - ordinary.total.item() == pytest.approx(change, rel=1e-4)


def test_objectness_is_one_more_set_and_needs_no_attention_map(random_output):
    output, targets = random_output(2), targets_of(3, 2)
    found = output.proposals
    objectness = Predictions(logits=found.logits + 1, boxes=found.boxes)
    saliency = objectness.logits.amax(-1)
    report = Criterion(LossConfig())(
        replace(output, objectness=objectness, selection=replace(output.selection, saliency=saliency)), targets
    )
    bare = replace(output, decoder_auxiliary=(), encoder_auxiliary=(), proposals=None, selection=None)
    alone = Criterion(LossConfig())(replace(bare, logits=objectness.logits, boxes=objectness.boxes), targets)
    for name, value in alone.terms.items():
        assert report.terms[f"{name}_backbone"].item() == pytest.approx(value.item(), rel=1e-5)
    without = Criterion(LossConfig(token_scoring_weight=0.0))(output, targets)
    assert report.total.item() == pytest.approx((without.total + alone.total).item(), rel=1e-5)
    assert "loss_mask_prediction" not in report.terms
    for name in ("all", "0", "1", "2"):
        key = f"corr_mask_attn_map_dec_{name}"
        assert torch.equal(report.metrics[key], without.metrics[key])
