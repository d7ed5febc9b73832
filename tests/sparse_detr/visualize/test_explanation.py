from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparse_detr.decoder_attention import decoder_attention_map
from sparse_detr.detector import SparseDetr
from sparse_detr.model.config import BackboneConfig, ModelConfig
from sparse_detr.records import Detections, ImageBatch, Targets
from sparse_detr.visualize import TokenReport, draw_explanation
from sparse_detr.visualize.tokens import AGREEMENT_COLOURS

SPARSE = ModelConfig(num_classes=3, backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0),
                     channels=32, heads=4, levels=3, encoder_layers=1, decoder_layers=2, feedforward_channels=32,
                     queries=10, keep_ratio=0.3)  # fmt: skip
DENSE = replace(SPARSE, keep_ratio=1.0, encoder_auxiliary_loss=False)
FULL = replace(DENSE, attention="full", levels=1, query_source="learned", box_refinement=False, shared_heads=True)
NAMES = ("disc", "square", "star")


def found(scores=(0.9, 0.5, 0.1)):
    boxes = torch.tensor([[10.0, 10.0, 40.0, 40.0], [50.0, 5.0, 90.0, 30.0], [0.0, 0.0, 9.0, 9.0]])
    return Detections(scores=torch.tensor(scores), labels=torch.tensor([0, 1, 2]), boxes=boxes)


def run(config, images=1, keep_ratio=None):
    torch.manual_seed(0)
    with torch.no_grad():
        batch = ImageBatch.from_list([torch.randn(3, 64, 96)] * images)
        return SparseDetr(config).eval()(batch, keep_ratio, with_auxiliary=True)


def picture(height=64, width=96):
    return np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)


def has(sheet, colour):
    return bool((np.abs(sheet.astype(int) - np.array(colour)) <= 1).all(-1).any())


def draw(config, image=None, **changes):
    image = picture() if image is None else image
    return draw_explanation(image, TokenReport.of(run(config)), found(), NAMES, title="an image", **changes)


def test_report_of_a_sparse_model():
    output = run(SPARSE)
    report = TokenReport.of(output)
    dam = decoder_attention_map(output.decoder_attention, output.shapes)[0]
    kept = output.selection.kept[0].tolist()
    assert report.missing is None
    assert report.tokens == len(report.saliency) == 8 * 12 + 4 * 6 + 2 * 3
    assert set(report.kept.tolist()) == set(kept)
    assert len(report.attended) == len(kept)
    assert dam[report.attended].min() >= dam.sort(descending=True).values[len(kept) - 1]
    assert report.shares[0] == pytest.approx(float(dam[kept].sum() / dam.sum()), abs=1e-5)
    assert report.on_levels(report.kept) == (
        sum(token < 96 for token in kept),
        sum(96 <= token < 120 for token in kept),
        sum(token >= 120 for token in kept),
    )


def test_a_dense_model_has_attention_alone_and_full_attention_nothing():
    dense = TokenReport.of(run(SPARSE, keep_ratio=1.0))
    assert dense.dam is not None
    assert (dense.saliency, dense.kept, dense.attended, dense.shares) == (None, None, None, None)
    assert "Dense encoder" in dense.missing
    full = TokenReport.of(run(FULL))
    assert full.dam is None
    assert "Full attention" in full.missing


def test_several_images_are_refused():
    with pytest.raises(ValueError, match="2 images; give the model one at a time"):
        TokenReport.of(run(SPARSE, images=2))


def test_a_sheet_has_a_row_for_everything_that_there_is():
    sparse, dense, full = draw(SPARSE), draw(DENSE), draw(FULL)
    assert sparse.dtype == np.uint8
    assert sparse.shape[1] == dense.shape[1] > full.shape[1]  # columns: all levels and three
    assert sparse.shape[0] > dense.shape[0]
    assert all(has(sparse, colour) for colour in AGREEMENT_COLOURS)  # the legend
    assert not any(has(full, colour) for colour in AGREEMENT_COLOURS)


def test_threshold_and_truth_change_the_large_picture():
    plain = draw(SPARSE, threshold=0.4)
    assert (plain != draw(SPARSE, threshold=0.6)).any()
    truth = Targets(labels=torch.tensor([0]), boxes=torch.tensor([[0.5, 0.5, 0.3, 0.3]]))
    assert (plain != draw(SPARSE, threshold=0.4, truth=truth)).any()


@pytest.mark.parametrize("size", [(400, 60), (60, 400), (700, 900)])
def test_images_of_any_form_give_a_sheet_that_is_not_huge(size):
    sheet = draw(SPARSE, picture(*size), tile=120)
    assert max(sheet.shape[:2]) < 2500
