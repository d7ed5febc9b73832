from __future__ import annotations

import itertools
import math

import pytest
import torch

from sparse_detr.errors import ConfigError, NotFiniteError
from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.matcher import match, matching_cost
from sparse_detr.records import Targets


def random_targets(*counts):
    return [Targets(labels=torch.randint(3, (n,)), boxes=torch.rand((n, 4)) * 0.5 + 0.2) for n in counts]


def random_predictions(images, count):
    return torch.randn(images, count, 3), torch.rand(images, count, 4) * 0.5 + 0.2


def test_equals_the_authors_matching(golden):
    output = golden.output()
    matching = match(output.logits, output.boxes, golden.targets, [output.logits.shape[1]], LossConfig())
    first = 0
    for image, target in enumerate(golden.targets):
        expected = golden.arrays[f"match{image}"]
        rows = matching.images == image
        found = torch.stack((matching.predictions[rows], matching.objects[rows] - first))
        assert set(map(tuple, found.T.tolist())) == set(map(tuple, expected.T.tolist()))
        first += len(target.labels)


def scalar_cost(logits, box, label, target):
    """The three costs in plain Python, from the definitions."""
    p = 1 / (1 + math.exp(-logits[label]))
    cost_class = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    l1 = sum(abs(a - b) for a, b in zip(box, target, strict=True))
    edges = [(b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2) for b in (box, target)]
    a, b = edges
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = box[2] * box[3] + target[2] * target[3] - inner
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 5 * l1 + 2 * cost_class - 2 * (inner / union - (hull - union) / hull)


def test_cost_is_the_sum_of_its_three_parts():
    torch.manual_seed(0)
    logits, boxes = random_predictions(2, 4)
    labels, target_boxes = torch.randint(3, (2, 3)), torch.rand((2, 3, 4)) * 0.5 + 0.2
    cost = matching_cost(logits, boxes, labels, target_boxes, LossConfig())
    for b, n, s in itertools.product(range(2), range(3), range(4)):
        expected = scalar_cost(
            logits[b, s].tolist(), boxes[b, s].tolist(), int(labels[b, n]), target_boxes[b, n].tolist()
        )
        assert cost[b, n, s].item() == pytest.approx(expected, abs=1e-5)


def test_assignment_is_the_best_of_all():
    torch.manual_seed(1)
    logits, boxes = random_predictions(1, 5)
    targets = random_targets(3)
    matching = match(logits, boxes, targets, [5], LossConfig())
    cost = matching_cost(logits, boxes, targets[0].labels[None], targets[0].boxes[None], LossConfig())[0]
    best = min(sum(cost[n, s].item() for n, s in enumerate(chosen)) for chosen in itertools.permutations(range(5), 3))
    assert cost[matching.objects, matching.predictions].sum().item() == pytest.approx(best, abs=1e-5)


def test_sets_side_by_side_match_as_they_do_alone():
    torch.manual_seed(2)
    sizes = (6, 9, 2)
    logits, boxes = random_predictions(3, sum(sizes))
    targets = random_targets(4, 0, 3)
    together = match(logits, boxes, targets, sizes, LossConfig())
    start = row = 0
    for size, rows in zip(sizes, together.rows_per_set, strict=True):
        alone = match(logits[:, start : start + size], boxes[:, start : start + size], targets, [size], LossConfig())
        part = slice(row, row + rows)
        assert torch.equal(together.images[part], alone.images)
        assert torch.equal(together.predictions[part], alone.predictions + start)
        assert torch.equal(together.objects[part], alone.objects)
        start, row = start + size, row + rows
    # With 2 predictions for 4 and 3 objects, only 2 + 2 can be matched.
    assert together.rows_per_set == (7, 7, 4)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_objects_have_no_rows(counts):
    logits, boxes = random_predictions(2, 5)
    matching = match(logits, boxes, random_targets(*counts), [5], LossConfig())
    assert matching.rows_per_set == (sum(counts),)
    assert 0 not in matching.images


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", ["logits", "boxes"])
@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_names_predictions_that_are_not_finite(bad, which, counts):
    logits, boxes = random_predictions(2, 5)
    {"logits": logits, "boxes": boxes}[which][1, 3, 2] = bad
    with pytest.raises(NotFiniteError, match=f"{which}: the model's predictions hold NaN or infinity"):
        match(logits, boxes, random_targets(*counts), [5], LossConfig())


def test_names_targets_that_are_not_finite():
    logits, boxes = random_predictions(1, 5)
    targets = [Targets(labels=torch.tensor([1]), boxes=torch.tensor([[0.5, 0.5, float("nan"), 0.1]]))]
    with pytest.raises(NotFiniteError, match="targets: a box"):
        match(logits, boxes, targets, [5], LossConfig())


@pytest.mark.parametrize("label", [3, -1])
def test_names_labels_outside_the_model(label):
    logits, boxes = random_predictions(1, 5)
    targets = [Targets(labels=torch.tensor([label]), boxes=torch.tensor([[0.5, 0.5, 0.2, 0.1]]))]
    with pytest.raises(ConfigError, match=r"targets\.labels: .* classes 0 to 2"):
        match(logits, boxes, targets, [5], LossConfig())
