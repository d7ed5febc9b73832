"""Tensors into a module, all of them or none, with the names of what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from sparse_detr.errors import CheckpointError

_LISTED = 6


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `module`; keys and shapes must be exactly the module's.

    Raises:
        CheckpointError: unknown, missing or misshapen keys, named; the module is as before.
    """
    check_keys(module.state_dict(), state, source)
    module.load_state_dict(state)


def check_keys(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError that names what does not fit, unless `state` has just the keys and shapes of `own`."""
    problems = []
    if unknown := sorted(state.keys() - own.keys()):
        problems.append(f"unknown keys: {listed(unknown)}")
    if missing := sorted(own.keys() - state.keys()):
        problems.append(f"missing keys: {listed(missing)}")
    if misshapen := [
        f"{key} is {tuple(state[key].shape)}, the model wants {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if state[key].shape != own[key].shape
    ]:
        problems.append(f"misshapen: {listed(misshapen)}")
    if problems:
        raise CheckpointError(f"{source}: {'; '.join(problems)}; give weights of a model with this configuration")


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
