"""Classes of a model against classes of a data set: which category id of the one is which of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparse_detr.errors import ConfigError
from sparse_detr.records import Classes

_SHOWN = 5


def match_categories(model: Classes | None, num_classes: int, data: Classes) -> dict[int, int]:
    """Category ids as the model gives them -> category ids of the data; ids that only the model knows are left out.

    Classes are matched by id and name where both agree, else by name (a data set that was numbered anew). A model
    without class names gives raw category ids.

    Raises:
        ConfigError: a class of the data is not among the model's; names both.
    """
    if model is None:
        if max(data.category_ids, default=0) < num_classes:
            return {category: category for category in data.category_ids}
        raise ConfigError(
            f"annotations: category ids go to {max(data.category_ids)}, but the model has no class names and scores "
            f"ids 0 to {num_classes - 1}; evaluate it on data of the ids that it was trained on"
        )
    known = list(zip(model.names, model.category_ids, strict=True))
    wanted = list(zip(data.names, data.category_ids, strict=True))
    if set(wanted) <= set(known):
        return {category: category for category in data.category_ids}
    id_of = dict(wanted)
    if set(id_of) <= set(model.names) and len(id_of) == len(wanted):
        return {category: id_of[name] for name, category in known if name in id_of}
    missing = [name for name in data.names if name not in model.names]
    raise ConfigError(
        f"annotations: classes {_some(missing or data.names)} are not classes of the model, which knows "
        f"{_some(model.names)}; evaluate it on data of the classes that it was trained on"
    )


def translate_results(entries: list[dict[str, Any]], category_of: dict[int, int]) -> list[dict[str, Any]]:
    """Entries of a COCO results file with the data's category ids; those of classes that it lacks are left out."""
    return [
        {**entry, "category_id": category_of[entry["category_id"]]}
        for entry in entries
        if entry["category_id"] in category_of
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
