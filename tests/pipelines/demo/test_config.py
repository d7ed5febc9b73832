"""Sizes of the demo that cannot work are refused by name."""

from __future__ import annotations

import pytest

from pipelines.demo.config import DemoConfig
from sparse_detr.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [("images", 0), ("validation", 0), ("workers", 0), ("epochs", 0), ("trial_images", 5000), ("ratios", ()),
     ("ratios", (0.0, 0.5)), ("ratios", (1.5,))],
)  # fmt: skip
def test_sizes_that_cannot_work_are_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        DemoConfig(**{field: value})  # type: ignore[arg-type]
