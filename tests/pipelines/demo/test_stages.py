"""Files and runs that the chapters of the demo write."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipelines.demo import stages
from pipelines.demo.collection import DemoData
from pipelines.demo.config import DemoConfig
from pipelines.demo.report import Example
from pipelines.demo.results import Place
from pipelines.demo.stages import inference_config, write_pictures, write_report_and_summary
from pipelines.tracking.tracker import NullTracker
from sparse_detr.data.decode import decode_image
from sparse_detr.storage.location import locate


def test_pictures_are_written_and_put_together(tmp_path: Path) -> None:
    pixels = np.full((40, 40, 3), 200, np.uint8)
    examples = tuple(Example(caption=name, pictures=(("a", pixels), ("b", pixels))) for name in ("1.jpg", "2.jpg"))
    folder = write_pictures(tmp_path / "pictures", examples)
    assert sorted(child.name for child in folder.iterdir()) == ["1.png", "2.png", "demo.png"]
    one, both = (decode_image((folder / n).read_bytes(), name=n) for n in ("1.png", "demo.png"))
    assert both.shape == (2 * one.shape[0], one.shape[1], 3)


def test_a_small_collection_may_be_mostly_broken(tmp_path: Path) -> None:
    place = Place(folder=tmp_path, store=locate(tmp_path), tracking_uri="none")
    data = DemoData(
        train_annotations="", train_images="", val_annotations="", val_images="", collection="c", broken=("b.jpg",)
    )
    trained = SimpleNamespace(checkpoint="model")
    settings = inference_config(DemoConfig(collection=1), place, data, trained)  # type: ignore[arg-type]
    assert settings.error_budget == "100%"
    assert (settings.short_side, settings.max_side) == (None, None)


def test_no_summary_without_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The summary says that the demo went to its end, so it is written last."""
    place = Place(folder=tmp_path, store=locate(tmp_path), tracking_uri="none")
    monkeypatch.setattr(stages, "make_summary", lambda *_: {"ap": 0.5})
    monkeypatch.setattr(stages, "make_report", lambda *_: None)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(stages, "write_report", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report_and_summary(place, DemoConfig(), None, NullTracker(), (), 1.0)  # type: ignore[arg-type]
    assert not (tmp_path / "summary.json").exists()
    monkeypatch.setattr(stages, "write_report", lambda path, _: path.write_text("report"))
    write_report_and_summary(place, DemoConfig(), None, NullTracker(), (), 1.0)  # type: ignore[arg-type]
    assert (tmp_path / "summary.json").read_text() == '{\n  "ap": 0.5\n}\n'
