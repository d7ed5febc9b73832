"""The one protocol for a user error between processes: pack it, unpack it, find it in what Ray wrapped around it.

No Ray here: the training engine and the command line, which must start at once, import this too.
"""

from __future__ import annotations

from typing import Any

from sparse_detr import errors
from sparse_detr.errors import SparseDetrError

PackedError = tuple[str, str]
"""Class name and message of a user error. Raised through Ray, an exception would lose its class and gain pages of
traceback; two strings survive every way between processes."""


def pack(error: SparseDetrError) -> PackedError:
    """The form of a user error that travels."""
    return type(error).__name__, str(error)


def unpack(packed: PackedError) -> SparseDetrError:
    """The error again; of a kind that is unknown here (a worker of another version), the root of the tree."""
    kind, message = packed
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, SparseDetrError):
        return found(message)
    return SparseDetrError(message)


def find(error: BaseException) -> SparseDetrError | None:
    """The user error behind an error, also where Ray has wrapped what a worker raised; None for a bug of ours."""
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
        queue += [getattr(current, "cause", None), current.__cause__]
        # What was being handled when one of Ray's was raised caused it; when one of ours was, it is a bug.
        if type(current).__module__.startswith("ray."):
            queue.append(current.__context__)
        queue += list(failures.values()) if isinstance(failures, dict) else []
    return None
