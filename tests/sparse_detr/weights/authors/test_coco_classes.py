"""The table of COCO against a real annotation file."""

from __future__ import annotations

import json
from pathlib import Path

from sparse_detr.weights.authors.coco_classes import COCO_CATEGORIES, coco_91_classes


def test_the_table_is_that_of_coco(shared: Path) -> None:
    path = shared / "data" / "coco_tiny" / "annotations" / "instances_val2017.json"
    assert {c["id"]: c["name"] for c in json.loads(path.read_text())["categories"]} == COCO_CATEGORIES


def test_labels_of_the_published_models_are_category_ids() -> None:
    classes = coco_91_classes()
    assert len(classes) == 91
    assert classes.category_ids == tuple(range(91))
    assert (classes.names[0], classes.names[1], classes.names[12], classes.names[90]) == (
        "unused 0",
        "person",
        "unused 12",
        "toothbrush",
    )
    assert sum(name.startswith("unused") for name in classes.names) == 11
