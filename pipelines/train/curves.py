"""Curves of a whole training and the AP of each class, as artifacts of its MLflow run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.tracking.tracker import Tracker
from pipelines.train.engine.progress import SHOWN_TERMS
from pipelines.train.engine.validation import CLASS_AP
from sparse_detr.visualize.charts import curves, line_svg

FOLDER = "curves"
"""Artifact folder of the pictures."""
CLASSES_FILE = "ap_of_classes.json"

_APS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
_CLASSES = 6
"""So many lines can be told apart."""


def record_curves(history: Sequence[Mapping[str, float]], best: Mapping[str, float], tracker: Tracker) -> None:
    """Draw losses, AP and the hardest classes' AP over the epochs; write every class's AP of the best epoch.

    Args:
        history: metrics of every epoch.
        best: those of the epoch whose model is kept.
        tracker: the run; without one nothing is drawn.
    """
    if tracker.run_id is None or not history:
        return
    classes = {name.removeprefix(CLASS_AP): best[name] for name in best if name.startswith(CLASS_AP)}
    worst = sorted(classes, key=lambda name: classes[name])[:_CLASSES]
    pictures = {
        "loss": ({"loss": "sum"}, "loss"),
        "loss_terms": (SHOWN_TERMS, "loss of the last decoder layer"),
        "ap": (_APS, "average precision"),
        "ap_of_classes": ({f"{CLASS_AP}{name}": name for name in worst}, "AP of the hardest classes"),
        "speed": ({"images_per_second": "images/s"}, "images/s"),
    }
    with tempfile.TemporaryDirectory(prefix="sparse-detr-") as folder:
        for name, (metrics, label) in pictures.items():
            if lines := curves(history, metrics):
                svg = line_svg(lines, x_label="epoch", y_label=label, from_zero=True, whole_x=True)
                Path(folder, f"{name}.svg").write_bytes(svg)
        tracker.artifact(folder, FOLDER)
    if classes:
        tracker.text(json.dumps(dict(sorted(classes.items(), key=lambda item: item[1])), indent=1), CLASSES_FILE)
