"""The images that the demo breaks on purpose."""

from __future__ import annotations

import pytest

from pipelines.demo.collection import broken_images
from sparse_detr.data.decode import decode_image
from sparse_detr.data.shapes import ShapesConfig
from sparse_detr.errors import ImageError


def test_every_broken_image_is_broken() -> None:
    files = dict(broken_images(ShapesConfig(images=1)))
    assert len(files) >= 5
    for name, data in files.items():
        with pytest.raises(ImageError):
            decode_image(data, name=name)
