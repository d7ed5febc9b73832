"""Tensors into a module, all of them or none, with the names of what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sparse_detr.errors import CheckpointError

_LISTED = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Source of a model's weights, and the fate of its tensors."""

    source: str | None
    """Path or URI; None where all weights are random."""
    loaded: tuple[str, ...] = ()
    """Tensors that now hold the source's numbers."""
    fresh: tuple[str, ...] = ()
    """Tensors that the source lacks: they stay as they were, random at the start of a training."""
    ignored: tuple[str, ...] = ()
    """Names that the source has and the model lacks; other sections of a file end in `/`."""
    prefix: str = ""
    """Prefix of every name in the source: sections end in `/`, modules in a dot (`state_dict/module.`)."""

    def describe(self) -> str:
        """One line, with the names of what starts fresh shortened to their stems."""
        if self.source is None:
            return "all weights start fresh"
        stems = sorted({".".join(name.split(".")[:2]) for name in self.fresh})
        fresh = f"; fresh: {len(self.fresh)} ({', '.join(stems)})" if self.fresh else ""
        ignored = f"; ignored: {len(self.ignored)}" if self.ignored else ""
        prefix = f" from under {self.prefix}" if self.prefix else ""
        return f"{self.source}: {len(self.loaded)} tensors loaded{prefix}{fresh}{ignored}"


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
