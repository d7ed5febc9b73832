"""The baseline on a GPU: the usual im2col kernel, one thread for each number of the output, in float32 (im2col.cu).

nvcc compiles it for this GPU when the benchmark needs it, which takes seconds; before it is timed it has to compute
what plain torch computes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_detr.ops import reference
from sparse_detr.records import Shapes

SOURCE = Path(__file__).with_name("im2col.cu")
TOLERANCE = 1e-5
"""Largest difference to float64 that is taken for rounding, relative to the largest number of a result."""

_TENSORS = ("value", "levels", "locations", "weights")
_RESULTS = ("output", "output_gradient", "value_gradient", "location_gradient", "weight_gradient")
_SIZES = ("images", "tokens", "queries", "heads", "channels", "level_count", "points", "device")

_DRIVER_TOO_OLD = (35, 222, 803)
"""CUDA's codes for a toolkit that is newer than the driver, in its words: insufficient, unsupported, mismatch."""


class MissingIm2colError(Exception):
    """The im2col kernel cannot be had on this machine; the message says why and what would help."""


class _Problem(ctypes.Structure):
    """`Problem` of im2col.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_TENSORS, *_RESULTS, "stream")),
        *((name, ctypes.c_int32) for name in _SIZES),
    )


class Im2col:
    """im2col.cu as a library: compiled by nvcc it takes tensors on a GPU, by a C++ compiler tensors on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.im2col_error.restype = ctypes.c_char_p

    def attention(self, value: Tensor, levels: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """The same as `reference.deformable_attention`, in float32, contiguous; differentiable in all but `levels`.

        Args:
            value: `[B, T, M, D]`.
            levels: of `level_table`, on the same device.
            locations: `[B, Q, M, L, P, 2]`.
            weights: `[B, Q, M, L, P]`.

        Returns:
            `[B, Q, M x D]`.

        Raises:
            ValueError: types, layouts or sizes that the kernel cannot take.
            MissingIm2colError: the driver is older than nvcc.
            RuntimeError: CUDA refused the launch for another reason.
        """
        output: Tensor = _Attention.apply(self, value, levels, locations, weights)  # type: ignore[no-untyped-call]
        return output

    def call(self, name: str, *tensors: Tensor, **results: Tensor) -> None:
        """Call `im2col_forward` or `im2col_backward` with (value, levels, locations, weights) and others by name."""
        value, _, locations, weights = tensors
        for tensor in (*tensors, *results.values()):
            if not tensor.is_contiguous() or tensor.device != value.device or tensor.numel() >= 1 << 31:
                raise ValueError("im2col: give contiguous tensors of one device with fewer than 2^31 numbers each")
        if not value.dtype == locations.dtype == weights.dtype == torch.float32 or value.shape[3] > 1024:
            raise ValueError("im2col: give float32 and at most 1024 channels a head")
        named = {**dict(zip(_TENSORS, tensors, strict=True)), **results}
        pointers = {key: tensor.data_ptr() for key, tensor in named.items()}
        if value.is_cuda:
            pointers["stream"] = torch.cuda.current_stream(value.device).cuda_stream
        images, tokens, heads, channels = value.shape
        sizes = (images, tokens, locations.shape[1], heads, channels, *weights.shape[3:], value.device.index or 0)
        problem = _Problem(**pointers, **dict(zip(_SIZES, sizes, strict=True)))
        if code := getattr(self._library, name)(ctypes.byref(problem)):
            said = f"{name}: {self._library.im2col_error(code).decode()}"
            if code in _DRIVER_TOO_OLD:
                raise MissingIm2colError(f"{said}; compile with the nvcc of the CUDA that torch was built with")
            raise RuntimeError(said)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, im2col: Im2col, *tensors: Tensor) -> Tensor:
        ctx.im2col = im2col
        ctx.save_for_backward(*tensors)
        value, _, locations, _ = tensors
        output = value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        im2col.call("im2col_forward", *tensors, output=output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, _, locations, weights = ctx.saved_tensors
        results = (torch.zeros_like(value), torch.empty_like(locations), torch.empty_like(weights))
        ctx.im2col.call(
            "im2col_backward",
            *ctx.saved_tensors,
            output_gradient=gradient.contiguous(),
            **dict(zip(_RESULTS[2:], results, strict=True)),
        )
        return None, results[0], None, *results[1:]


def level_table(shapes: Shapes, device: torch.device) -> Tensor:
    """`[L, 3]` for the kernel: height, width and first token of every level."""
    starts = [sum(height * width for height, width in shapes[:level]) for level in range(len(shapes))]
    rows = [(height, width, start) for (height, width), start in zip(shapes, starts, strict=True)]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME or CUDA_PATH, or on the PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def nvcc_command(nvcc: str, target: Path, architectures: Sequence[str], *further: str) -> list[str]:
    """The command that compiles it for `architectures`, such as 90."""
    codes = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    flags = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC")
    return [nvcc, *flags, *codes, *further, str(SOURCE), "-o", str(target)]


@functools.cache
def load_im2col(capability: tuple[int, int]) -> Im2col:
    """Compile for a GPU of that compute capability and load; once a process.

    Raises:
        MissingIm2colError: there is no nvcc, or it does not compile the kernel.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise MissingIm2colError(
            "there is no nvcc: install the CUDA toolkit, and put nvcc on the PATH or set CUDA_HOME"
        )
    # A folder of this user alone; a loaded library needs its file no longer.
    with tempfile.TemporaryDirectory(prefix="sparse_detr_") as folder:
        target = Path(folder) / "im2col.so"
        command = nvcc_command(nvcc, target, ["".join(str(part) for part in capability)])
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            return Im2col(ctypes.CDLL(str(target)))
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines() or [f"exit code {error.returncode}"]
            raise MissingIm2colError(f"{' '.join(command)} failed ({said[0]}); repair the CUDA toolkit") from error
        except OSError as error:
            raise MissingIm2colError(f"{nvcc} or what it built does not run ({error}); repair the toolkit") from error


def largest_difference(im2col: Im2col, device: torch.device) -> float:
    """Of output and gradients to plain torch in float64, relative to the largest number of each; NaN counts as one."""
    found = 0.0
    for channels, seed in ((32, 0), (13, 1), (1, 2)):
        shapes, generator = ((5, 7), (3, 2), (1, 1)), torch.Generator().manual_seed(seed)
        axes = (2, 9, 3, len(shapes), 4)
        value = torch.randn(2, 42, 3, channels, generator=generator)
        locations = torch.rand(*axes, 2, generator=generator) * 1.6 - 0.3  # some outside
        weights = torch.rand(axes, generator=generator)
        direction = torch.randn(2, 9, 3 * channels, generator=generator)
        ours = [tensor.to(device).requires_grad_() for tensor in (value, locations, weights)]
        exact = [tensor.double().requires_grad_() for tensor in (value, locations, weights)]
        output = im2col.attention(ours[0], level_table(shapes, device), ours[1], ours[2])
        wanted = reference.deformable_attention(exact[0], shapes, exact[1], exact[2])
        results = (output, *torch.autograd.grad(output, ours, direction.to(device)))
        expected = (wanted, *torch.autograd.grad(wanted, exact, direction.double()))
        for a, b in zip(results, expected, strict=True):
            difference = float((a.cpu().double() - b).detach().abs().max() / b.detach().abs().max())
            found = max(found, difference if difference == difference else 1.0)
    return found


def checked(im2col: Im2col, device: torch.device) -> Im2col:
    """The kernel, after it has computed what plain torch computes.

    Raises:
        MissingIm2colError: the driver is older than nvcc.
        RuntimeError: it computes something else; its times would mean nothing.
    """
    found = largest_difference(im2col, device)
    if found > TOLERANCE:
        raise RuntimeError(f"im2col.cu differs from plain torch by {found:.1e} of the largest number on {device}")
    return im2col
