"""A word to the user while the workers wait for a store that is away: the progress bar alone would just stand still."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sparse_detr.errors import StorageError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import Location

SILENCE = 15.0
"""Seconds without a finished block, after which the driver asks the stores itself. A block takes a second or two."""

_END_SECONDS = 2.0
"""Longest that the end of a run waits for a look that is under way."""


@contextmanager
def explained_silence(
    places: Sequence[Location], say: Callable[[str], None] | None, *, patience: float, silence: float = SILENCE
) -> Iterator[Callable[[], None]]:
    """Say so, once for each outage, when nothing moves and one of the stores cannot be used; and when it goes on.

    Yields a function to call whenever something moved.

    Args:
        places: locations that the workers use; those on a disk are not asked.
        say: takes the message; None asks nothing.
        patience: seconds for which the workers wait, for the message.
        silence: seconds between two looks.
    """
    moved, over = threading.Event(), threading.Event()
    stores = [place for place in places if not place.is_local]
    if say is None or not stores:
        yield moved.set
        return

    def look() -> None:
        told = False
        while not over.wait(silence):
            still = not moved.is_set()
            moved.clear()
            if told and not still and _away(stores, over) is None:
                say("The store answers again; the run goes on")
                told = False
            elif still and not told and (found := _away(stores, over)) is not None:
                say(f"Waiting for the store, for up to {patience:g} s in each worker: {found}")
                told = True

    watcher = threading.Thread(target=look, name="silence", daemon=True)
    watcher.start()
    try:
        yield moved.set
    finally:
        over.set()
        watcher.join(_END_SECONDS)


def _away(stores: Sequence[Location], over: threading.Event) -> StorageError | None:
    for store in stores:
        if over.is_set():
            return None
        try:
            check_access(store)
        except StorageError as error:
            return error
    return None
