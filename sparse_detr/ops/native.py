"""The compiled op: whether it is there, what it was built for, and what to say where it is not.

`SPARSE_DETR_OP` chooses: `native` insists on the compiled op, `reference` takes plain torch; unset takes the compiled
op where it loads. Two libraries: `_C` with the schema and the kernels for the CPU, `_C_cuda` with those for GPUs, which
is looked for when the first tensor on a GPU comes. `SPARSE_DETR_OP_ISA` limits the vectors of the CPU's kernels.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from sparse_detr.errors import ConfigError

_FOLDER = Path(__file__).resolve().parents[1] / "lib"
_CHOICES = ("", "native", "reference")
_INSTRUCTION_SETS = ("base", "avx2", "avx512")
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A compiled library as it was found, once a process."""

    loaded: bool
    """Its kernels can run."""

    build: str = ""
    """Compiler, torch and flags that it was built with."""

    problems: tuple[str, ...] = ()
    """Parts that are missing or do not match, each with its remedy."""


@functools.cache
def native() -> Library:
    """Load the schema and the kernels for the CPU; warns once where they are missing and were not declined.

    Raises:
        ConfigError: SPARSE_DETR_OP has another value, or asks for a compiled op that does not load;
            SPARSE_DETR_OP_ISA names no instruction set of this processor.
    """
    wanted = os.environ.get("SPARSE_DETR_OP", "")
    if wanted not in _CHOICES:
        raise ConfigError(f"SPARSE_DETR_OP: {wanted!r}; set reference or native, or leave it unset")
    if wanted == "reference":
        return Library(loaded=False)
    problem = _load("_C", "a C++ compiler")
    if problem is None:
        _limit_as_chosen(os.environ.get("SPARSE_DETR_OP_ISA", ""))
        return Library(loaded=True, build=_text("_C", "sparse_detr_build"))
    if wanted == "native":
        raise ConfigError(f"SPARSE_DETR_OP: native, but {problem}")
    # On a CPU the encoder is what a picture waits for: figures in docs/op.md.
    warnings.warn(f"{problem}. Until then plain torch does it, 5 to 15 times slower.", RuntimeWarning, stacklevel=2)
    return Library(loaded=False, problems=(problem,))


@functools.cache
def native_cuda() -> Library:
    """Load the kernels for CUDA; warns once where a GPU goes without them.

    Raises:
        ConfigError: SPARSE_DETR_OP asks for the compiled op, and there is a GPU, but they do not load.
    """
    if not native().loaded or not torch.cuda.is_available():
        return Library(loaded=False)
    problem = _load("_C_cuda", "the CUDA toolkit (nvcc on the PATH, or CUDA_HOME)")
    if problem is not None:
        if os.environ.get("SPARSE_DETR_OP") == "native":
            raise ConfigError(f"SPARSE_DETR_OP: native, but {problem}")
        slower = "Until then plain torch does it on the GPU; how much slower that is was not measured."
        warnings.warn(f"{problem}. {slower}", RuntimeWarning, stacklevel=2)
        return Library(loaded=False, problems=(problem,))
    build = _text("_C_cuda", "sparse_detr_cuda_build")
    devices = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    return Library(loaded=True, build=build, problems=cuda_mismatches(build, torch.version.cuda, devices))


def cuda_mismatches(build: str, torch_cuda: str | None, devices: list[tuple[int, int]]) -> tuple[str, ...]:
    """Parts of a build, such as `CUDA 13.0 for sm_75 sm_90 PTX_90`, that do not fit this torch and these GPUs."""
    version, architectures = build.split()[1], build.split()[3:]
    problems = []
    if torch_cuda is not None and version.split(".")[0] != torch_cuda.split(".")[0]:
        problems.append(f"the op was built with CUDA {version}, torch with {torch_cuda}: build it with that toolkit")
    for major, minor in sorted(set(devices)):
        if not any(_runs_on(name, (major, minor)) for name in architectures):
            problems.append(f"no code for sm_{major}{minor}: build with TORCH_CUDA_ARCH_LIST={major}.{minor}")
    return tuple(problems)


def _runs_on(name: str, capability: tuple[int, int]) -> bool:
    """Code for sm_80 runs on sm_86, not on sm_90; PTX is compiled for newer chips when it is first used.

    What is built for one chip's own features (`a`) runs on no other; for a family's (`f`), within its major number.
    """
    found = re.fullmatch(r"(sm|PTX)_(\d+)(\d)([af]?)", name)
    if found is None:
        return False
    built = (int(found[2]), int(found[3]))
    if found[4] == "a":
        return built == capability
    newer = found[1] == "PTX" and not found[4]
    return built <= capability and (newer or built[0] == capability[0])


def instruction_set() -> str:
    """Widest vectors that this processor and the build share: base, avx2 or avx512; empty without the op."""
    return _text("_C", "sparse_detr_instruction_set") if native().loaded else ""


def limit_instruction_set(name: str) -> None:
    """Use no wider vectors than those of `base`, `avx2` or `avx512`: for tests and measurements."""
    if not native().loaded or not _limit(name):
        raise ConfigError(f"instruction set: {name!r} is not one that this build and processor share")


def _limit(name: str) -> bool:
    return bool(ctypes.CDLL(str(_path("_C"))).sparse_detr_limit_instruction_set(name.encode()))


def _limit_as_chosen(name: str) -> None:
    """Takes SPARSE_DETR_OP_ISA, or says why it cannot be had."""
    if not name or _limit(name):
        return
    if name not in _INSTRUCTION_SETS:
        raise ConfigError(f"SPARSE_DETR_OP_ISA: {name!r}; set base, avx2 or avx512, or leave it unset")
    widest = _text("_C", "sparse_detr_instruction_set")
    raise ConfigError(
        f"SPARSE_DETR_OP_ISA: {name!r}, but this processor and build have {widest} at most; "
        "set that or a narrower one, or leave it unset"
    )


def _path(name: str) -> Path:
    return _FOLDER / f"{name}.abi3.so"


def _load(name: str, needs: str) -> str | None:
    """None, or what keeps the library from loading, with the remedy."""
    path = _path(name)
    if not path.is_file():
        return f"the compiled op is missing ({path.name}): install {needs}, then {_REBUILD}"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"{path.name} does not load in torch {torch.__version__} ({error}): {_REBUILD}"
    return None


def _text(name: str, function: str) -> str:
    call = getattr(ctypes.CDLL(str(_path(name))), function)
    call.restype = ctypes.c_char_p
    return str(call().decode())
