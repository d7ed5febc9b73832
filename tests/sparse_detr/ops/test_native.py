"""The compiled op is found, refused and limited: with small libraries in C in its place; and tests without it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparse_detr.errors import ConfigError
from sparse_detr.ops import native

ROOT = Path(__file__).resolve().parents[3]
# A processor without avx512.
CPU_PART = """
#include <string.h>
static const char* used = "avx2";
int sparse_detr_limit_instruction_set(const char* name) {
  if (strcmp(name, "base") && strcmp(name, "avx2")) return 0;
  used = strcmp(name, "base") ? "avx2" : "base";
  return 1;
}
const char* sparse_detr_instruction_set(void) { return used; }
const char* sparse_detr_build(void) { return "a stub"; }
"""
CUDA_PART = """
const char* sparse_detr_cuda_build(void) { return "CUDA 13.0 for sm_80"; }
"""


def compile_stub(folder: Path, name: str, source: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (folder / f"{name}.c").write_text(source)
    target = str(folder / f"{name}.abi3.so")
    subprocess.run((compiler, "-shared", "-fPIC", str(folder / f"{name}.c"), "-o", target), check=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which libraries are looked for; what was found before is forgotten, here and afterwards."""
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    for variable in ("SPARSE_DETR_OP", "SPARSE_DETR_OP_ISA"):
        monkeypatch.delenv(variable, raising=False)
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    native.native.cache_clear()
    native.native_cuda.cache_clear()


@pytest.fixture
def gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU, sm_90, and a CUDA build of torch; of the op, the CPU's part alone."""
    compile_stub(folder, "_C", CPU_PART)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return folder


def test_who_insists_on_the_compiled_op_gets_no_plain_torch_on_a_gpu(
    gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_DETR_OP", "native")
    assert native.native().loaded
    for _ in range(2):  # not only when it is first asked
        with pytest.raises(
            ConfigError, match=r"SPARSE_DETR_OP: native, but the compiled op is missing \(_C_cuda.abi3.so\)"
        ):
            native.native_cuda()


def test_plain_torch_on_a_gpu_is_announced_without_a_figure_that_nobody_measured(gpu: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"_C_cuda.*install the CUDA toolkit.*pip install") as warned:
        assert not native.native_cuda().loaded
    assert "not measured" in str(warned[0].message)
    assert not re.search(r"\d+ times", str(warned[0].message))


def test_the_cuda_part_is_compared_with_the_gpus(gpu: Path) -> None:
    compile_stub(gpu, "_C_cuda", CUDA_PART)
    found = native.native_cuda()
    assert (found.loaded, found.build) == (True, "CUDA 13.0 for sm_80")
    assert found.problems == ("no code for sm_90: build with TORCH_CUDA_ARCH_LIST=9.0",)


def test_a_limit_that_no_processor_has_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_stub(folder, "_C", CPU_PART)
    monkeypatch.setenv("SPARSE_DETR_OP_ISA", "AVX2")
    with pytest.raises(ConfigError, match="SPARSE_DETR_OP_ISA: 'AVX2'; set base, avx2 or avx512, or leave it unset"):
        native.native()


def test_a_limit_that_this_processor_lacks_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_stub(folder, "_C", CPU_PART)
    monkeypatch.setenv("SPARSE_DETR_OP_ISA", "avx512")
    with pytest.raises(
        ConfigError, match="SPARSE_DETR_OP_ISA: 'avx512', but this processor and build have avx2 at most"
    ):
        native.native()


@pytest.mark.parametrize(("limit", "used"), [("", "avx2"), ("base", "base"), ("avx2", "avx2")])
def test_other_limits_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, used: str) -> None:
    compile_stub(folder, "_C", CPU_PART)
    monkeypatch.setenv("SPARSE_DETR_OP_ISA", limit)
    assert native.instruction_set() == used


@pytest.mark.skipif(not native.native().loaded, reason="the op is not compiled here")
def test_the_true_library_takes_limits_and_a_misspelt_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = native.instruction_set()
    try:
        monkeypatch.setenv("SPARSE_DETR_OP_ISA", "base")
        native.native.cache_clear()
        assert native.instruction_set() == "base"
        monkeypatch.setenv("SPARSE_DETR_OP_ISA", "sse")
        native.native.cache_clear()
        with pytest.raises(ConfigError, match="SPARSE_DETR_OP_ISA: 'sse'; set base, avx2 or avx512"):
            native.native()
    finally:
        monkeypatch.undo()
        native.native.cache_clear()
        native.limit_instruction_set(before)


def test_without_the_op_tests_are_collected_and_skipped(tmp_path: Path) -> None:
    """A warning at import, while warnings are errors, would end the whole suite."""
    for name in ("sparse_detr", "tests/sparse_detr/ops"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARSE_DETR_OP")}
    # Collects all files, and runs those tests alone that need the op.
    done = subprocess.run(
        (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests", "-k", "test_kernels and formula"),
        cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the op is not compiled here" in done.stdout
    assert re.search(r"= \d+ skipped, \d+ deselected in", done.stdout), done.stdout
