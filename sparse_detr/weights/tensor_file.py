"""Tensors out of a file of whatever form, without running code from it."""

from __future__ import annotations

import argparse
import io
import pickle
import re
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
"""Exceptions of torch for a file with a wrong byte; which one depends on the byte."""
_BEGINNINGS = (b"PK\x03\x04", b"\x80")
"""Of a zip file and of a pickle: what torch writes now, and what it wrote before version 1.6."""
_CODE = re.compile(r"GLOBAL (?P<name>[\w.]+)|call reduce for|Can only (create new object|build)")
"""In what torch says where a file asks for a function or class beyond tensors and plain containers."""


def read_sections(content: bytes, source: str) -> Sections:
    """The tensors of a safetensors or PyTorch file, read with `weights_only`.

    Args:
        content: the file.
        source: its name, for messages.

    Raises:
        CheckpointError: neither of both, cut short, asks to run code, or has no tensors.
    """
    tree = _read_safetensors(content, source) if is_safetensors(content) else read_pickle(content, source)
    sections: Sections = {}
    _collect(tree, "", sections)
    if not sections:
        raise CheckpointError(f"{source}: holds no tensors by name; give a file with a state_dict")
    return sections


def is_safetensors(content: bytes) -> bool:
    """Whether a file is of this form: 8 bytes of length and a JSON object. No form of PyTorch has a brace there."""
    return content[8:9] == b"{"


def read_pickle(content: bytes, source: str, remedy: str = "give a .pth or safetensors file of tensors") -> object:
    """Content of a file of `torch.save`: tensors and plain containers, with the command line's Namespace if any.

    Args:
        content: the file.
        source: its name, for messages.
        remedy: what to give instead of a file that is refused, for messages.

    Raises:
        CheckpointError: not such a file, cut short, or asks to run code.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        raise CheckpointError(f"{source}: {_refusal(content, error, remedy)}") from error


def _refusal(content: bytes, error: Exception, remedy: str) -> str:
    """Why, in our words: torch's message advises to read the file again and let its code run."""
    text = str(error)
    if not content.startswith(_BEGINNINGS):
        return f"refused, it is no PyTorch file; {remedy}"
    if "TorchScript" in text:
        return f"refused, it is a TorchScript program; {remedy}"
    reason = _first_line(error)
    if isinstance(error, pickle.UnpicklingError):
        if code := _CODE.search(text):
            name = f" ({code['name']})" if code["name"] else ""
            return f"refused, it asks to run code while it is read{name}; {remedy}"
        reason = (text.partition("WeightsUnpickler error:")[2].strip() or "damaged").splitlines()[0]
    return f"cannot be read as a PyTorch checkpoint ({reason}); fetch it again"


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
