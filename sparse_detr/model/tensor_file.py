"""Tensors out of a file of whatever form, without running code from it."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sparse_detr.errors import CheckpointError

Sections = dict[str, dict[str, Tensor]]
"""Tensors by name, under the path of the dict that holds them: "" is the file itself, `model/` its entry `model`."""

_DEPTH = 4
_DAMAGE = (
    RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError,
    struct.error,
)  # fmt: skip
"""What torch raises when a byte of a file is wrong, depending on which."""


def read_sections(content: bytes, source: str) -> Sections:
    """The tensors of a safetensors or PyTorch file, read with `weights_only`.

    Args:
        content: the file.
        source: its name, for messages.

    Raises:
        CheckpointError: neither of both, cut short, asks to run code, or has no tensors.
    """
    # A safetensors file begins with 8 bytes of length and a JSON object; no form of PyTorch has a brace there.
    tree = _read_safetensors(content, source) if content[8:9] == b"{" else read_pickle(content, source)
    sections: Sections = {}
    _collect(tree, "", sections)
    if not sections:
        raise CheckpointError(f"{source}: holds no tensors by name; give a file with a state_dict")
    return sections


def read_pickle(content: bytes, source: str) -> object:
    """What `torch.save` wrote, tensors and plain containers, with the command line's Namespace if it is there.

    Raises:
        CheckpointError: not such a file, cut short, or asks to run code.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{source}: refused, it is no PyTorch file or asks to run code while it is read ({_first_line(error)}); "
            "give a .pth or safetensors file of tensors"
        ) from error
    except _DAMAGE as error:
        raise CheckpointError(
            f"{source}: cannot be read as a PyTorch checkpoint ({_first_line(error)}); fetch it again"
        ) from error


def _read_safetensors(content: bytes, source: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{source}: not a safetensors file ({_first_line(error)}); fetch it again") from error


def _collect(tree: object, path: str, sections: Sections) -> None:
    if not isinstance(tree, Mapping) or path.count("/") >= _DEPTH:
        return
    tensors = {key: value for key, value in tree.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        sections[path] = tensors
    for key, value in tree.items():
        _collect(value, f"{path}{key}/", sections)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
