"""Options of `sparse-detr train`: those of a run, and what else the command can do with one."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipelines.recipes.config import RunConfig
from pipelines.recipes.registry import get_recipe
from sparse_detr.errors import require


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions(RunConfig):
    """Train a recipe; or, in this process and without a cluster, try it or run one step of it again."""

    dry_run: bool = False
    """Check everything, measure a few steps here, and say how long the run would take and where it would write; write
    nothing."""
    overfit_one_batch: bool = False
    """Learn the images of one step alone until they are detected with AP 0.9, or say what does not learn; write
    nothing."""
    replay: str | None = None
    """Path or URI of a step that a run kept in `not_finite/`: run it again and find what made its first number that is
    not finite. Its own config is used, no recipe."""

    def __post_init__(self) -> None:
        # Named: in a class with slots, which is made twice, super() without arguments finds the wrong one.
        RunConfig.__post_init__(self)
        chosen = [name for name in ("dry_run", "overfit_one_batch", "replay") if getattr(self, name)]
        require(len(chosen) <= 1, f"{' and '.join(chosen)}: both are set; give one of them")

    @classmethod
    def of(cls, run: RunConfig) -> TrainOptions:
        """The options that train this run."""
        return cls(**{each.name: getattr(run, each.name) for each in fields(RunConfig)})

    @property
    def run(self) -> RunConfig:
        """The run without these options."""
        return RunConfig(**{each.name: getattr(self, each.name) for each in fields(RunConfig)})


def options_of(recipe: str) -> TrainOptions:
    """The options with a recipe's values.

    Raises:
        ConfigError: no recipe has the name.
    """
    return TrainOptions.of(get_recipe(recipe))
