"""What the chapters of the demo write."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.demo.story import write_pictures
from pipelines.report import Example
from sparse_detr.data.decode import decode_image


def test_pictures_are_written_and_put_together(tmp_path: Path) -> None:
    pixels = np.full((40, 40, 3), 200, np.uint8)
    examples = tuple(Example(caption=name, pictures=(("a", pixels), ("b", pixels))) for name in ("1.jpg", "2.jpg"))
    folder = write_pictures(tmp_path / "pictures", examples)
    assert sorted(child.name for child in folder.iterdir()) == ["1.png", "2.png", "demo.png"]
    one, both = (decode_image((folder / n).read_bytes(), name=n) for n in ("1.png", "demo.png"))
    assert both.shape == (2 * one.shape[0], one.shape[1], 3)
