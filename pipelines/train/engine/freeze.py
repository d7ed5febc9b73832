"""Parts of a model that a training leaves as they are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from sparse_detr.errors import ConfigError, require


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Take the gradient off every parameter of the parts that `optimizer.freeze` names.

    Raises:
        ConfigError: a name fits no parameter (with the nearest part), or nothing is left to be trained.
    """
    parameters = dict(model.named_parameters())
    for pattern in names:
        chosen = [name for name in parameters if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not chosen:
            raise ConfigError(_unknown(model, pattern))
        for name in chosen:
            parameters[name].requires_grad_(False)
    require(
        not names or any(parameter.requires_grad for parameter in parameters.values()),
        f"optimizer.freeze: {', '.join(names)} leaves nothing to be trained; name fewer parts",
    )


def _unknown(model: nn.Module, pattern: str) -> str:
    parts = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    near = difflib.get_close_matches(pattern, parts, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"its parts are {', '.join(dict(model.named_children()))}"
    return f"optimizer.freeze: {pattern!r} fits nothing in the model; {hint}"
