"""A training whose steps take a fraction of a second: what it is made of, and what two equal ones may differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SMALL: Mapping[str, Any] = {
    "data.short_side": 64,
    "data.max_side": 64,
    "data.augment.short_sides": [56, 64],
    "data.augment.max_side": 64,
    "data.augment.crop_min": 48,
    "data.augment.crop_max": 64,
    "model.channels": 32,
    "model.heads": 4,
    "model.levels": 3,
    "model.feedforward_channels": 64,
    "model.queries": 12,
    "optimizer.warmup_steps": 2,
    "training.evaluate_every": 1,
}
"""Changes of the recipe `tiny`, for the pictures of `shapes_folder`."""

TIMES = frozenset({"images_per_second", "train_seconds", "evaluation_seconds", "data_wait"})
"""Numbers of an epoch that tell how long something took: the only ones in which two equal runs differ."""


def without_times(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What a run found, without how long it took."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in history]
