"""Decodes images of its standard input, each behind its length in digits, and answers with a byte for each.

The process that `quarantine` risks for images that may kill it. It imports little, so that another one starts at once.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from sparse_detr.data.decode import decode_image
from sparse_detr.errors import ImageError

DIGITS = 12
"""Of the length of an image, bytes."""


def main() -> None:
    """Say that it has started, then decode until the input ends."""
    _answer()
    while head := sys.stdin.buffer.read(DIGITS):
        # A broken image that says so is the worker's to report.
        with suppress(ImageError, MemoryError):
            decode_image(sys.stdin.buffer.read(int(head)), name="trial")
        _answer()


def _answer() -> None:
    sys.stdout.buffer.write(b".")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
