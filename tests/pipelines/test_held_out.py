from __future__ import annotations

import torch

from pipelines.config import RunConfig
from pipelines.held_out import detect, evaluating, flat_metrics, held_out_metrics
from pipelines.run_parts import build_loop


def perfect_results(ground_truth: dict[str, list[dict[str, object]]]) -> list[dict[str, object]]:
    keys = ("image_id", "category_id", "bbox")
    return [{key: a[key] for key in keys} | {"score": 0.9} for a in ground_truth["annotations"]]


def test_perfect_results_have_an_ap_of_one(quick_run: RunConfig) -> None:
    ground_truth = build_loop(quick_run).data.ground_truth
    metrics = held_out_metrics(perfect_results(ground_truth), ground_truth)

    flat = flat_metrics(metrics)
    assert flat["ap"] == 1.0
    assert flat["ap50"] == 1.0
    # The pictures have 64 pixels: no object is large, so COCO has no number for it.
    assert metrics.ap_large == -1
    assert "ap_large" not in flat


def test_every_held_out_image_gets_detections(quick_run: RunConfig) -> None:
    loop = build_loop(quick_run)
    loop.model.train()
    results = detect(loop.model, loop.data.val, loop.data.classes, "cpu")

    assert {entry["image_id"] for entry in results} == {image["id"] for image in loop.data.ground_truth["images"]}
    assert {entry["category_id"] for entry in results} <= set(loop.data.classes.category_ids)
    assert loop.model.training


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
