from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from sparse_detr.errors import AnnotationError, ConfigError
from sparse_detr.evaluation.coco_ap import coco_results, evaluate_coco
from sparse_detr.records import Classes, Detections

PUBLISHED = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564)


def truth(*boxes, categories=((7, "cat"), (9, "dog")), first_id=1, images=(1, 2)):
    """A ground truth of (image, category, bbox[, crowd])."""
    return {
        "images": [{"id": image, "height": 200, "width": 200} for image in images],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"id": first_id + i, "image_id": image, "category_id": category, "bbox": bbox,
             "area": bbox[2] * bbox[3], "iscrowd": int(bool(crowd))}
            for i, (image, category, bbox, *crowd) in enumerate(boxes)
        ],
    }  # fmt: skip


def result(image, category, bbox, score=0.9):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


def test_twelve_published_numbers(shared: Path, capsys):
    folder = shared / "data" / "coco_eval"
    ground_truth = json.loads((folder / "ground_truth.json").read_text())
    metrics = evaluate_coco(ground_truth, json.loads((folder / "detections.json").read_text()))
    assert tuple(round(value, 3) for value in metrics.summary().values()) == PUBLISHED
    assert capsys.readouterr().out == ""
    assert sum(metrics.per_class.values()) / len(metrics.per_class) == pytest.approx(metrics.ap)


def test_by_hand():
    # Class cat: two objects of 40 x 40. The first is found exactly. The second is found shifted by 10 pixels:
    # IoU = 30 * 40 / (2 * 1600 - 1200) = 0.6, right for the thresholds 0.50, 0.55 and 0.60 of ten. A better-scored
    # box on nothing lies between them in score. Class dog: one object, never found.
    ground_truth = truth((1, 7, [10, 10, 40, 40]), (1, 7, [100, 100, 40, 40]), (2, 9, [0, 0, 50, 50]))
    results = [
        result(1, 7, [10, 10, 40, 40], 0.9),
        result(2, 7, [150, 150, 30, 30], 0.8),
        result(1, 7, [110, 100, 40, 40], 0.7),
    ]
    metrics = evaluate_coco(ground_truth, results)
    # Precision is 1 up to recall 0.5 (51 of 101 points) and, where the second counts, 2/3 beyond.
    loose, tight = (51 + 50 * 2 / 3) / 101, 51 / 101
    cat = (3 * loose + 7 * tight) / 10
    assert metrics.per_class == {"cat": pytest.approx(cat), "dog": 0}
    assert metrics.ap == pytest.approx(cat / 2)
    assert metrics.ap50 == pytest.approx(loose / 2)
    assert metrics.ap75 == pytest.approx(tight / 2)
    assert metrics.ar1 == pytest.approx(0.5 / 2)
    assert metrics.ar100 == pytest.approx((3 * 1.0 + 7 * 0.5) / 10 / 2)
    # The box on nothing is small (30 x 30), so it does not count against the medium objects.
    assert metrics.ap_medium == pytest.approx((3 * 1 + 7 * tight) / 10 / 2)
    assert metrics.ap_small == metrics.ap_large == -1


def test_crowds_are_neither_missed_nor_wrong():
    ground_truth = truth((1, 7, [10, 10, 40, 40]), (1, 7, [100, 0, 100, 200], True))
    results = [result(1, 7, [10, 10, 40, 40], 0.5), result(1, 7, [120, 20, 40, 40], 0.9)]
    assert evaluate_coco(ground_truth, results).ap == pytest.approx(1)


@pytest.mark.parametrize("first_id", [0, 1, 500])
def test_an_annotation_of_id_zero_counts(first_id):
    ground_truth = truth((1, 7, [10, 10, 40, 40]), first_id=first_id)
    assert evaluate_coco(ground_truth, [result(1, 7, [10, 10, 40, 40])]).ap == pytest.approx(1)


def test_no_results_give_zeros():
    metrics = evaluate_coco(truth((1, 7, [10, 10, 40, 40])), [])
    assert metrics.ap == metrics.ap50 == metrics.ap_medium == metrics.ar100 == 0
    assert metrics.per_class == {"cat": 0}


def test_arguments_stay_as_they_are():
    ground_truth, results = truth((1, 7, [10, 10, 40, 40])), [result(1, 7, [10, 10, 40, 40])]
    before = copy.deepcopy((ground_truth, results))
    evaluate_coco(ground_truth, results)
    assert (ground_truth, results) == before


def test_two_classes_of_one_name_stay_apart():
    ground_truth = truth((1, 7, [0, 0, 40, 40]), (1, 9, [50, 50, 40, 40]), categories=((7, "cell"), (9, "cell")))
    metrics = evaluate_coco(ground_truth, [result(1, 7, [0, 0, 40, 40])])
    assert metrics.per_class == {"cell (7)": pytest.approx(1), "cell (9)": 0}


def test_unknown_image_is_named():
    with pytest.raises(AnnotationError, match=r"1 image ids are not in the ground truth, first \[77\]"):
        evaluate_coco(truth((1, 7, [0, 0, 9, 9])), [result(77, 7, [0, 0, 9, 9])])


def test_results_carry_category_ids_and_sizes():
    detections = Detections(
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
        boxes=torch.tensor([[1.0, 2.0, 11.0, 22.0], [0.0, 0.0, 4.0, 4.0]]),
    )
    classes = Classes(names=("cat", "dog"), category_ids=(7, 9))
    assert coco_results(3, detections, classes) == [
        {"image_id": 3, "category_id": 9, "bbox": [1, 2, 10, 20], "score": 0.75},
        {"image_id": 3, "category_id": 7, "bbox": [0, 0, 4, 4], "score": 0.5},
    ]


def test_label_without_class_is_named():
    detections = Detections(scores=torch.tensor([0.7]), labels=torch.tensor([2]), boxes=torch.rand(1, 4))
    with pytest.raises(ConfigError, match=r"detections\.labels: 2, but there are 1 classes"):
        coco_results(3, detections, Classes(names=("cat",), category_ids=(7,)))
