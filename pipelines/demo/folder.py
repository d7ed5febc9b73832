"""The demo's own folder: replaced by the next demo, but never a folder of something else."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparse_detr.errors import OutputExistsError
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.output import require_marked

MARK = ".sparse-detr-demo"


@contextmanager
def claimed_folder(folder: Path) -> Iterator[Path]:
    """An empty folder with the demo's mark, held by this process until the end of the block.

    Raises:
        OutputExistsError: the folder holds something that is no demo's, or another demo is writing there.
    """
    folder = folder.expanduser().absolute()
    mark = folder / MARK
    require_marked(locate(folder), MARK, field="output", writer="demo")
    folder.mkdir(parents=True, exist_ok=True)
    with mark.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputExistsError(
                f"output: another demo is writing to {folder}; wait for it, or choose another folder"
            ) from error
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child != mark:
                child.unlink()
        yield folder


def claim_prefix(store: Location) -> None:
    """The same for the place in the user's store; what an earlier demo left there is deleted.

    Raises:
        OutputExistsError: something that is no demo's stands there.
    """
    mark = store.child(MARK)
    require_marked(store, MARK, field="store", writer="demo")
    if mark.exists():
        store.delete_dir()
    mark.write_bytes(b"This prefix belongs to `sparse-detr demo`, which replaces all that is below it.\n")
