"""The sources of the op under sanitizers and compilers, and an installation without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = f"BIN={Path(sys.executable).parent}"
NEEDS_TOOLKIT = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("nvcc") is None,
    reason="no g++ here, or no CUDA toolkit, whose headers the emulation needs",
)


def _run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=900, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_no_read_or_write_past_an_end(tmp_path: Path) -> None:
    shown = _run("make", "-C", "csrc", "sanitize", BIN, f"BUILD={tmp_path}", "ROUNDS=15")
    assert "base: 15 rounds without a report" in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_the_sanitizer_would_see_a_read_past_an_end(tmp_path: Path) -> None:
    source = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc", source)
    (tmp_path / "tests" / "csrc").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "csrc" / "hostile.cpp", tmp_path / "tests" / "csrc")
    header = source / "cpu" / "samples.h"
    broken = header.read_text().replace("if (count != padded) {", "if (false) {")
    assert broken != header.read_text()
    header.write_text(broken)
    done = subprocess.run(
        ["make", "-C", "csrc", "sanitize", BIN, f"BUILD={tmp_path}", "ROUNDS=15"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@NEEDS_TOOLKIT
def test_cuda_kernels_on_a_cpu_agree_with_the_formula(tmp_path: Path) -> None:
    shown = _run("make", "-C", "csrc", "emulate", BIN, f"BUILD={tmp_path}", "ROUNDS=3")
    assert "sm_90: 3 rounds agree with the formula" in shown
    assert "sm_75: 3 rounds agree with the formula" in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
@NEEDS_TOOLKIT
@pytest.mark.parametrize(
    ("target", "header", "right", "wrong", "message"),
    [
        ("races", "samples.cuh", "distance > 0; distance /= 2) x +=", "distance > 1; distance /= 2) x +=", "gradient["),
        ("races", "forward.cuh", "  __syncwarp();\n", "", "output["),
        ("races", "forward.cuh", "  __syncwarp();", "  if (!group.active) return;\n  __syncwarp();", "are elsewhere"),
        ("races", "packs.cuh", "atomicAdd(to + i, x[i] * weight)", "to[i] += x[i] * weight", "data race"),
        ("memory", "samples.cuh", "active ? group : launch.groups - 1", "group", "heap-buffer-overflow"),
    ],
)
def test_the_emulation_would_see_a_broken_kernel(
    tmp_path: Path, target: str, header: str, right: str, wrong: str, message: str
) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "tests" / "csrc", tmp_path / "tests" / "csrc")
    kernel = tmp_path / "csrc" / "cuda" / header
    broken = kernel.read_text().replace(right, wrong)
    assert broken != kernel.read_text()
    kernel.write_text(broken)
    done = subprocess.run(
        ["make", "-C", "csrc", f"emulate-{target}", BIN, f"BUILD={tmp_path}", "ROUNDS=3"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_a_compiler_it_installs_and_says_what_that_costs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("sparse_detr", "pipelines", "tune", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-v")
    none = "/no/compiler"
    shown = _run(*pip, "--target", str(tmp_path / "site"), str(source), CC=none, CXX=none, FORCE_CUDA="0")
    assert "csrc/ was not compiled" in shown
    assert "5 to 15 times slower" in shown
    assert not list((tmp_path / "site" / "sparse_detr").rglob("*.so"))
    code = (
        "from sparse_detr.ops.deformable_attention import backend; from sparse_detr.ops.self_check import self_test; "
    )
    code += "print(backend(), self_test() < 1e-5)"
    python = (sys.executable, "-c", code)
    shown = _run(*python, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"), SPARSE_DETR_OP="")
    assert "reference True" in shown
    assert shown.count("RuntimeWarning: the compiled op is missing") == 1
    assert "5 to 15 times slower" in shown
    done = subprocess.run(
        python, cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "SPARSE_DETR_OP": "native"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "SPARSE_DETR_OP: native, but the compiled op is missing (_C.abi3.so)" in done.stderr


@pytest.mark.parametrize(("choice", "shown"), [("reference", "reference"), ("fastest", "set reference or native")])
def test_the_environment_chooses(choice: str, shown: str) -> None:
    code = "from sparse_detr.ops.deformable_attention import backend; print(backend())"
    done = subprocess.run(
        (sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "SPARSE_DETR_OP": choice, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert shown in done.stdout + done.stderr
