from __future__ import annotations

import pytest
import torch

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.validation import detect, flat_metrics, validation_metrics, validation_overlap
from sparse_detr.decoder_attention import decoder_attention_map
from sparse_detr.evaluation.attention_overlap import OverlapMean
from sparse_detr.evaluation.mode import evaluating


def perfect_results(ground_truth: dict[str, list[dict[str, object]]]) -> list[dict[str, object]]:
    keys = ("image_id", "category_id", "bbox")
    return [{key: a[key] for key in keys} | {"score": 0.9} for a in ground_truth["annotations"]]


def test_perfect_results_have_an_ap_of_one(quick_run: RunConfig) -> None:
    ground_truth = build_loop(quick_run).data.ground_truth
    metrics = validation_metrics(perfect_results(ground_truth), ground_truth)

    flat = flat_metrics(metrics)
    assert flat["ap"] == 1.0
    assert flat["ap50"] == 1.0
    # The pictures have 64 pixels: no object is large, so COCO has no number for it.
    assert metrics.ap_large == -1
    assert "ap_large" not in flat


def test_every_validation_image_gets_detections(quick_run: RunConfig) -> None:
    loop = build_loop(quick_run)
    loop.model.train()
    results = detect(loop.model, loop.data.val, loop.data.classes, "cpu")

    assert {entry["image_id"] for entry in results} == {image["id"] for image in loop.data.ground_truth["images"]}
    assert {entry["category_id"] for entry in results} <= set(loop.data.classes.category_ids)
    assert loop.model.training


def test_corr_of_sparse_models_is_measured_beside_the_same_detections(quick_run: RunConfig) -> None:
    loop = build_loop(quick_run)
    overlap = OverlapMean()
    with_overlap = detect(loop.model, loop.data.val, loop.data.classes, "cpu", overlap)
    plain = detect(loop.model, loop.data.val, loop.data.classes, "cpu")
    assert [entry["score"] for entry in with_overlap] == pytest.approx([entry["score"] for entry in plain], abs=1e-5)

    shares = []
    with evaluating(loop.model):
        for batch in loop.data.val:
            output = loop.model(batch.images, with_auxiliary=True)
            dam = decoder_attention_map(output.decoder_attention, output.shapes)
            for row, count in enumerate(output.selection.counts.tolist()):
                shares.append(float(dam[row, output.selection.kept[row, :count]].sum() / dam[row].sum()))
    summary = validation_overlap(overlap)
    assert len(shares) == 8
    assert summary["corr"] == pytest.approx(sum(shares) / 8, abs=1e-5)
    metrics = loop.evaluate()
    assert {name: metrics[name] for name in summary} == summary
    assert set(summary) == {"corr", "corr_0", "corr_1", "corr_2"}


def test_dense_models_have_no_corr(quick_run: RunConfig) -> None:
    metrics = build_loop(override(quick_run, {"model.keep_ratio": 1.0})).evaluate()
    assert not any(name.startswith("corr") for name in metrics)


def test_evaluating_restores_the_mode_also_after_an_exception() -> None:
    model = torch.nn.Dropout()
    try:
        with evaluating(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise RuntimeError
    except RuntimeError:
        pass
    assert model.training
    assert torch.is_grad_enabled()
