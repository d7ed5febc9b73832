"""Every recipe by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from pipelines.recipes.coco import PAPER_RECIPES
from pipelines.recipes.config import RunConfig
from pipelines.recipes.small import bccd_r18, tiny, tiny_detr, tiny_objectness
from sparse_detr.errors import ConfigError

RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe for recipe in (tiny, tiny_objectness, tiny_detr, bccd_r18, *PAPER_RECIPES)
}
"""Every recipe by name."""


def get_recipe(name: str) -> RunConfig:
    """The run of that name.

    Raises:
        ConfigError: no recipe has the name; with the nearest one that does.
    """
    if name in RECIPES:
        return RECIPES[name]()
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(RECIPES)}"
    raise ConfigError(f"recipe: {name!r} does not exist; {hint}")
