"""Variables of the client for a job, in two halves of which neither shows anything by itself.

Ray shows a job's runtime environment in the dashboard and the job API, and writes it to logs. So that holds a random
pad alone; the values, combined with the pad by exclusive or (a one-time pad), travel in a package beside the code.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from sparse_detr.errors import ConfigError

PAD_VARIABLE = "SPARSE_DETR_PAD"
PACKAGE = "sparse_detr_sealed"
_FILE = "values"


def seal(variables: Mapping[str, str], parent: Path) -> tuple[Path, str]:
    """Write the package below `parent`; returns its folder, and the pad that opens it. No pad is used twice."""
    plain = json.dumps(dict(variables)).encode()
    pad = secrets.token_bytes(len(plain))
    folder = parent / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / _FILE).write_bytes(_combine(plain, pad))
    return folder, pad.hex()


def open_sealed() -> None:
    """Put what was sealed into this process's environment; nothing happens where no pad came along."""
    pad = os.environ.pop(PAD_VARIABLE, "")
    if not pad:
        return
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{PACKAGE}: the package with the job's variables did not arrive; submit the job again")
    os.environ.update(json.loads(_combine((Path(spec.origin).parent / _FILE).read_bytes(), bytes.fromhex(pad))))


def _combine(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
