from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from pipelines.tracking.tracker import NullTracker
from pipelines.train.curves import record_curves


class Recorder(NullTracker):
    def __init__(self) -> None:
        super().__init__()
        self.run_id = "a-run"
        self.files: dict[str, str] = {}

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        self.files |= {f"{folder}/{file.name}": file.read_text() for file in Path(path).iterdir()}

    def text(self, text: str, name: str) -> None:
        self.files[name] = text


def test_pictures_and_classes() -> None:
    tracker = Recorder()
    history = [
        {"epoch": 1.0, "loss": 9.0, "loss_ce": 1.0, "images_per_second": 5.0},
        {"epoch": 2.0, "loss": 7.0, "loss_ce": 0.5, "images_per_second": 5.0, "ap": 0.3, "ap/cat": 0.5, "ap/dog": 0.1},
    ]
    record_curves(history, history[1], tracker)
    pictures = ("loss", "loss_terms", "ap", "ap_of_classes", "speed")
    assert set(tracker.files) == {f"curves/{name}.svg" for name in pictures} | {"ap_of_classes.json"}
    assert json.loads(tracker.files["ap_of_classes.json"]) == {"dog": 0.1, "cat": 0.5}
    assert list(json.loads(tracker.files["ap_of_classes.json"])) == ["dog", "cat"]
    for name, svg in tracker.files.items():
        if name.endswith(".svg"):
            assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "dog" in tracker.files["curves/ap_of_classes.svg"]


def test_nothing_is_drawn_without_a_run() -> None:
    record_curves([{"epoch": 1.0, "loss": 1.0}], {"epoch": 1.0}, NullTracker())
    tracker = Recorder()
    record_curves([], {}, tracker)
    assert tracker.files == {}
