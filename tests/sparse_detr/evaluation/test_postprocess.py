from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.records import Output


def output_of(logits, boxes):
    return Output(
        logits=logits,
        boxes=boxes,
        kept_tokens=None,
        query_tokens=None,
        shapes=((1, 1),),
        token_padding=torch.zeros((len(logits), 1), dtype=torch.bool),
    )


@pytest.mark.parametrize("case", ["AB", "B"])
def test_equals_the_authors_detections(shared: Path, case):
    stored = np.load(shared / "golden" / "r50_sparse_rho0.1.npz")

    def recorded(name):
        return torch.from_numpy(stored[f"{case}/{name}"])

    output = output_of(recorded("pred_logits"), recorded("pred_boxes"))
    found = postprocess(output, [(480, 640)] * len(case))
    for image, detections in enumerate(found):
        torch.testing.assert_close(detections.scores, recorded("post_scores")[image], atol=1e-6, rtol=0)
        assert torch.equal(detections.labels, recorded("post_labels")[image])
        torch.testing.assert_close(detections.boxes, recorded("post_boxes_480x640")[image], atol=1e-3, rtol=0)


def test_by_hand():
    logits = torch.tensor([[[-9.0, 2.0], [1.0, 0.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0]]])
    (found,) = postprocess(output_of(logits, boxes), [(100, 200)], limit=3)
    assert found.scores.tolist() == pytest.approx([0.880797, 0.731059, 0.5], abs=1e-5)
    assert found.labels.tolist() == [1, 0, 1]
    assert found.boxes.tolist() == [[50, 25, 150, 75], [0, 0, 100, 100], [0, 0, 100, 100]]


def test_gives_fewer_where_there_are_fewer():
    (found,) = postprocess(output_of(torch.zeros((1, 2, 3)), torch.rand((1, 2, 4))), [(10, 10)])
    assert len(found.scores) == 6


@pytest.mark.parametrize(("sizes", "limit", "message"), [([], 5, "0 sizes for 1 images"), ([(4, 4)], 0, "limit: 0")])
def test_refuses(sizes, limit, message):
    with pytest.raises(ValueError, match=message):
        postprocess(output_of(torch.zeros((1, 2, 3)), torch.rand((1, 2, 4))), sizes, limit)
