"""Overrides of a config by dotted field name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from pipelines.recipes.config import RunConfig
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import ConfigError


def override(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The same run with some fields changed, all at once: `override(config, {"optimizer.lr": 1e-4})`.

    Values are plain (numbers, strings, lists) or whole nested configs.

    Raises:
        ConfigError: a name does not exist (with the nearest one that does), a value has the wrong type, or the
            fields do not work together.
    """
    data = to_dict(config)
    for name, value in changes.items():
        _set(data, name, to_dict(value) if dataclasses.is_dataclass(value) else value)
    return from_dict(RunConfig, data)


def _set(data: dict[str, Any], name: str, value: object) -> None:
    *parents, leaf = name.split(".")
    folder: Any = data
    for depth, part in enumerate((*parents, leaf)):
        if not isinstance(folder, dict) or part not in folder:
            raise ConfigError(_unknown(data, name))
        if depth < len(parents):
            folder = folder[part]
    folder[leaf] = value


def _unknown(data: Mapping[str, Any], name: str) -> str:
    names = list(field_values(data))
    near = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.split(".")[-1] == name.split(".")[-1]]
    hint = f"did you mean {near[0]}?" if near else "see --help for the fields"
    return f"{name}: no such field; {hint}"


def field_values(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of all fields in the nested dict of a config: what MLflow shows as parameters."""
    values: dict[str, Any] = {}
    for key, value in data.items():
        values |= field_values(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
