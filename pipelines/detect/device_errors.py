"""Errors of a GPU that last: after a kernel that asserts or writes astray, its process can use the GPU no more."""

from __future__ import annotations

import torch

EXIT_CODE = 87
"""Exit code of a worker that ends because of such an error: the process that replaces it has a GPU that works."""

_SHORT_MEMORY = ("out of memory", "ALLOC_FAILED")
"""CUDA's and cuBLAS's words for memory that is short: the next, smaller batch may do."""


def is_lasting(error: BaseException) -> bool:
    """Whether the error is one after which every later call to the GPU in this process may fail too."""
    message = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(words in message for words in _SHORT_MEMORY):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in message
