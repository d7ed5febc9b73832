"""Configurations to plain dictionaries and back, strictly: what a dictionary says is what the config holds.

Every field must be there and of its own type; nothing is converted or filled in, because a checkpoint that
lacks its keep ratio must not be given a default one.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

from cattrs import Converter
from cattrs.errors import BaseValidationError

from sparse_detr.errors import ConfigError

Config = TypeVar("Config")

_SCALARS: tuple[type, ...] = (bool, int, float, str)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass of scalars, sequences, mappings and dataclasses as a dictionary fit for JSON."""
    result: dict[str, Any] = _converter().unstructure(config)
    return result


def from_dict(cls: type[Config], data: Mapping[str, Any]) -> Config:
    """The dataclass that `to_dict` made `data` of.

    Raises:
        ConfigError: an unknown, missing or mistyped key, named with dots, or a value that `cls` refuses.
    """
    _check_keys(cls, data, "")
    try:
        return _converter().structure(data, cls)
    except BaseValidationError as error:
        raise ConfigError("; ".join(_explain(error, ""))) from error


def _check_keys(cls: Any, data: Any, path: str) -> None:
    """Compare the keys of `data`, and of the dataclasses below, with the fields."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path.rstrip('.') or cls.__name__}: {data!r}; give a dictionary of its fields")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in data:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            remedy = f"did you mean {path}{close[0]}?" if close else f"its fields are {', '.join(names)}"
            raise ConfigError(f"{path}{key}: unknown field; {remedy}")
    for name in names:
        if name not in data:
            raise ConfigError(f"{path}{name}: missing; a stored config holds every field")
        for inner in _dataclasses_in(hints[name]):
            if data[name] is not None:
                _check_keys(inner, data[name], f"{path}{name}.")


def _dataclasses_in(hint: Any) -> Iterator[Any]:
    """The dataclass that a field holds, directly or or-None."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    candidates = [option for option in options if dataclasses.is_dataclass(option)]
    if len(candidates) == 1:
        yield candidates[0]


@cache
def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True, unstruct_collection_overrides={tuple: list})
    for scalar in _SCALARS:
        converter.register_structure_hook(scalar, _scalar_hook(scalar))
    converter.register_structure_hook_func(_is_literal, _choose)
    return converter


def _is_literal(hint: Any) -> bool:
    origin: Any = typing.get_origin(hint)
    return origin is typing.Literal


def _choose(value: Any, hint: Any) -> Any:
    choices = typing.get_args(hint)
    if value not in choices:
        raise ValueError(f"{value!r} is not known; choose one of {', '.join(map(str, choices))}")
    return value


def _scalar_hook(scalar: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        # True is an int to Python, and 1 is as good as 1.0 to people.
        if scalar is float and type(value) is int:
            return float(value)
        if type(value) is not scalar:
            raise TypeError(f"{value!r}; give a value of type {scalar.__name__}")
        return value

    return structure


def _explain(error: BaseException, path: str) -> Iterator[str]:
    """One message for each leaf of a cattrs error group."""
    if not isinstance(error, BaseValidationError):
        yield f"{path.rstrip('.')}: {error}" if not isinstance(error, ConfigError) else _below(path, str(error))
        return
    for inner in error.exceptions:
        notes = [note for note in getattr(inner, "__notes__", ()) if hasattr(note, "name") or hasattr(note, "index")]
        step = "".join(str(getattr(note, "name", getattr(note, "index", ""))) + "." for note in notes)
        yield from _explain(inner, path + step)


def _below(path: str, message: str) -> str:
    """A message of a config's own check, with the name of the field in front that holds the config."""
    head = path.rstrip(".")
    last = head.rpartition(".")[2]
    return message if not head or message.startswith((f"{last}.", f"{head}.")) else f"{head}.{message}"
