"""Finds what a user can mend in whatever Ray has wrapped around it."""

from __future__ import annotations

from typing import Any

import ray
import ray.train
import ray.train.torch

from sparse_detr import errors
from sparse_detr.errors import SparseDetrError


def user_error(error: BaseException) -> SparseDetrError | None:
    """The mistake behind an error, also where Ray has wrapped what a worker raised."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        current = queue.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        # A class that Ray derives at run time from ours has the remote traceback for a message; its cause is plain.
        if isinstance(current, SparseDetrError) and type(current).__module__ == SparseDetrError.__module__:
            return current
        failures = getattr(current, "worker_failures", None)
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
        queue += list(failures.values()) if isinstance(failures, dict) else []
    return None


def raise_user_error(board: Any, cause: BaseException | None) -> None:
    """Raise in the driver what a worker noted as the user's mistake."""
    mistake = ray.get(board.mistake.remote())
    if mistake is not None:
        kind, message = mistake
        found = getattr(errors, kind, SparseDetrError)
        raise found(message) from cause
