"""Parameters that a sweep varies: the encoder's keep ratio, and the weight of its auxiliary losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from sparse_detr.errors import require

Params = dict[str, float]

FIELDS: Mapping[str, str] = {
    "keep_ratio": "model.keep_ratio",
    "encoder_auxiliary_weight": "loss.encoder_auxiliary_weight",
}
"""The field of the run config that each name stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """The values to try. Every field is a tuple of choices."""

    keep_ratio: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Shares of the tokens that the encoder updates, each in (0, 1]."""
    encoder_auxiliary_weight: tuple[float, ...] = (1.0, 0.25)
    """Factors on the losses of the encoder's layers, each at least 0; 0 is without them."""

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            distinct = len(values) > 0 and len(set(values)) == len(values)
            require(distinct, f"space.{field.name}: {values}; give at least one value, and none twice")
        for value in self.keep_ratio:
            require(0.0 < value <= 1.0, f"space.keep_ratio: {value}; give numbers in (0, 1]")
        for value in self.encoder_auxiliary_weight:
            sound = math.isfinite(value) and value >= 0
            require(sound, f"space.encoder_auxiliary_weight: {value}; give finite numbers of at least 0")

    @property
    def size(self) -> int:
        """Number of combinations."""
        return len(self.keep_ratio) * len(self.encoder_auxiliary_weight)

    def grid(self, trials: int | None = None) -> tuple[Params, ...]:
        """The combinations along the diagonals, so that also the first few have every value of a field in turn.

        Raises:
            ConfigError: fewer than 1, or more trials than combinations.
        """
        count = self.size if trials is None else trials
        fits = 1 <= count <= self.size
        require(fits, f"trials: {count}; the grid has {self.size} combinations, give 1 to {self.size}")
        ratios, weights = self.keep_ratio, self.encoder_auxiliary_weight
        cycle = math.lcm(len(ratios), len(weights))
        return tuple(
            {
                "keep_ratio": ratios[turn % len(ratios)],
                "encoder_auxiliary_weight": weights[(turn + turn // cycle) % len(weights)],
            }
            for turn in range(count)
        )


def as_overrides(params: Mapping[str, float]) -> dict[str, float]:
    """Parameters of a trial as changes for `pipelines.recipes.override.override`."""
    return {FIELDS[name]: float(value) for name, value in params.items()}
