"""Options of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipelines.recipes.config import RunConfig
from pipelines.recipes.registry import get_recipe
from sparse_detr.errors import require
from tune.search_space import SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """A sweep as the command line sees it."""

    run: RunConfig
    """Run of every trial, but for its own parameters. Set `run.training.init_model` to fine-tune a trained model,
    `run.training.epochs` and `run.data.train_limit` to keep trials short."""
    space: SearchSpace = field(default_factory=SearchSpace)
    """Values to vary."""
    trials: int = 4
    """Number of trainings."""
    method: Literal["grid", "optuna"] = "grid"
    """`grid` walks through the combinations, `optuna` draws from them by what earlier trials found."""
    concurrent: int = 2
    """Trials at the same time; fewer where the cluster has no room."""

    def __post_init__(self) -> None:
        require(
            self.run.existing != "resume",
            "run.existing: 'resume' continues a training or a prediction alone so far, a sweep cannot be resumed yet; "
            "choose refuse or overwrite",
        )
        require(self.method in ("grid", "optuna"), f"method: {self.method!r} is not known; choose grid or optuna")
        for name in ("trials", "concurrent"):
            require(getattr(self, name) >= 1, f"{name}: {getattr(self, name)}; give at least 1")
        if self.method == "grid":
            self.space.grid(self.trials)


def sweep_of(recipe: str) -> SweepConfig:
    """A sweep over trials of that recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    return SweepConfig(run=get_recipe(recipe))
