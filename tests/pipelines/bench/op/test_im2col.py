"""The baseline of the op's benchmark: compiled for GPUs, and its arithmetic on the host against plain torch."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pipelines.bench.op import im2col
from pipelines.bench.op.im2col import (
    SOURCE,
    Im2col,
    MissingIm2colError,
    checked,
    find_nvcc,
    level_table,
    load_im2col,
    nvcc_command,
)
from pipelines.bench.op.implementations import (
    GRID_SAMPLE,
    IM2COL,
    TRANSFORMERS,
    Sampling,
    Workload,
    line_up,
    peers_on,
)

CPU = torch.device("cpu")
SHAPES = ((5, 4), (2, 3))
WITH_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


def on_the_host(folder: Path, source: str) -> Im2col:
    """The source compiled by a C++ compiler, a loop in place of the threads."""
    (folder / "im2col.cpp").write_text(source)
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "im2col.cpp",
        "-o",
        "lib.so",
    ]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return Im2col(ctypes.CDLL(str(folder / "lib.so")))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Im2col:
    return on_the_host(tmp_path_factory.mktemp("host"), SOURCE.read_text())


@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc here")
def test_nvcc_compiles_it_without_a_warning(tmp_path: Path) -> None:
    nvcc = find_nvcc()
    assert nvcc is not None
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    known = [name for name in ("75", "80", "90", "120") if f"compute_{name}" in listed]
    strict = ("-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror")
    target = tmp_path / "im2col.so"
    done = subprocess.run(nvcc_command(nvcc, target, known, *strict), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    library = ctypes.CDLL(str(target))
    assert all(hasattr(library, name) for name in ("im2col_forward", "im2col_backward", "im2col_error"))


@WITH_COMPILER
def test_its_arithmetic_equals_plain_torch(host: Im2col) -> None:
    assert checked(host, CPU) is host


@WITH_COMPILER
@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("y = location[1] * height - 0.5f", "y = location[1] * height - 0.499f"),
        ("part.y += (c / 2 ? value : -value) * corner.x_share", "part.y += (c / 2 ? value : -value) * corner.y_share"),
        ("add(p.value_gradient + corner.cell, weighted", "add(p.value_gradient + corner.cell, given"),
        ("part.weight *= given;", "part.weight = NAN;"),
    ],
)
def test_an_error_would_be_seen(tmp_path: Path, text: str, wrong: str) -> None:
    source = SOURCE.read_text()
    assert source.count(text) == 1
    with pytest.raises(RuntimeError, match="differs from plain torch"):
        checked(on_the_host(tmp_path, source.replace(text, wrong)), CPU)


@WITH_COMPILER
@pytest.mark.parametrize("place", [float("nan"), float("inf"), -float("inf"), 3e38, -1e9])
def test_hostile_places_contribute_nothing(host: Im2col, place: float) -> None:
    leaves = [
        torch.randn(1, 26, 2, 8).requires_grad_(),
        torch.full((1, 3, 2, 2, 4, 2), place, requires_grad=True),
        torch.ones(1, 3, 2, 2, 4, requires_grad=True),
    ]
    output = host.attention(leaves[0], level_table(SHAPES, CPU), leaves[1], leaves[2])
    assert not output.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(output.sum(), leaves))


@WITH_COMPILER
def test_what_the_kernel_cannot_take_is_refused(host: Im2col) -> None:
    value, locations, weights = torch.ones(1, 26, 2, 8), torch.ones(1, 3, 2, 2, 4, 2), torch.ones(1, 3, 2, 2, 4)
    levels = level_table(SHAPES, CPU)
    with pytest.raises(ValueError, match="contiguous"):
        host.attention(torch.ones(1, 26, 8, 2).transpose(2, 3), levels, locations, weights)
    with pytest.raises(ValueError, match="float32"):
        host.attention(value.double(), levels, locations, weights)
    assert host.attention(value, levels, locations[:, :0], weights[:, :0]).shape == (1, 0, 16)


def test_without_nvcc_it_is_missing_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(MissingIm2colError, match="no nvcc: install"):
        load_im2col((9, 0))


def test_what_an_nvcc_that_fails_said_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\necho 'nvcc fatal: Unsupported gpu architecture' >&2\nexit 1\n")
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(MissingIm2colError, match=r"compute_990,code=sm_990 .*Unsupported gpu architecture"):
        load_im2col((99, 0))


def test_a_gpu_without_it_is_compared_with_grid_sample() -> None:
    def missing(_shapes: object, _device: object) -> Sampling:
        raise MissingIm2colError("there is no nvcc")

    def present(_shapes: object, _device: object) -> Sampling:
        return lambda value, _locations, _weights: value

    assert set(peers_on(torch.device("cuda"))) == {TRANSFORMERS, IM2COL}
    assert set(peers_on(CPU)) == {TRANSFORMERS}
    field = line_up(Workload(), CPU, {TRANSFORMERS: present, IM2COL: missing})
    assert (field.left_out, field.baseline) == ({IM2COL: "there is no nvcc"}, GRID_SAMPLE)
    field = line_up(Workload(), CPU, {TRANSFORMERS: present, IM2COL: present})
    assert (field.left_out, field.baseline) == ({}, IM2COL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, or torch is a build without CUDA")
@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc here")
def test_the_kernels_equal_plain_torch() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    assert im2col.largest_difference(load_im2col(torch.cuda.get_device_capability(device)), device) < 1e-5
