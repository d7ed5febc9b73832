"""setup.py where compilers fail, are missing or older: with tools that write the file they are asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from sparse_detr.ops.native import cuda_mismatches

ROOT = Path(__file__).resolve().parents[2]
# Each call is written down; what follows -o is the file to make.
TOOL = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
  --list-gpu-arch) echo {known} ;;
  --version) echo "Cuda compilation tools, release 12.4, V12.4.131" ;;
  *) [ {works} = yes ] || exit 1
     while [ $# -gt 0 ]; do [ "$1" != -o ] || echo {content} > "$2"; shift; done ;;
esac
"""


def tool(path: Path, works: bool = True, known: Sequence[str] = ("80", "90"), content: str = "new") -> Path:
    """A compiler that takes no time; its calls are in `path`.log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = " ".join(f"compute_{name}" for name in known)
    text = TOOL.format(log=f"{path}.log", works="yes" if works else "no", known=names, content=content)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The files that setup.py needs, and no more."""
    folder = tmp_path / "source"
    (folder / "sparse_detr").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py", "MANIFEST.in", "sparse_detr/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    return folder


def build(source: Path, *command: str, cxx: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python setup.py` with that compiler for C++, and without what this environment says of CUDA."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "TORCH_", "FORCE_"))}
    return subprocess.run(
        (sys.executable, *(command or ("setup.py", "build_ext", "--inplace"))),
        cwd=source, capture_output=True, text=True, timeout=240,
        env={**clean, "PATH": "/no/path", "CC": str(cxx), "CXX": str(cxx), **environment},
    )  # fmt: skip


def libraries(folder: Path) -> dict[str, str]:
    """Names and contents."""
    return {path.name: path.read_text().strip() for path in (folder / "sparse_detr" / "lib").glob("*.so*")}


@pytest.mark.parametrize("broken", ["nvcc", "c++", "no nvcc"])
def test_who_insists_on_cuda_gets_no_installation_without_it(source: Path, tmp_path: Path, broken: str) -> None:
    (source / "sparse_detr" / "lib").mkdir()
    for name in ("_C", "_C_cuda"):
        (source / "sparse_detr" / "lib" / f"{name}.abi3.so").write_text("old")
    nvcc = tool(tmp_path / "bin" / "nvcc", works=broken != "nvcc")
    path = "/no/path" if broken == "no nvcc" else str(nvcc.parent)
    done = build(source, cxx=tool(tmp_path / "c++", works=broken != "c++"), FORCE_CUDA="1", PATH=path)
    assert done.returncode != 0
    assert "plain torch" not in done.stderr
    assert ("there is no nvcc: install the CUDA toolkit" in done.stderr) == (broken == "no nvcc")
    # A checkout keeps what was built, and nothing older.
    assert libraries(source) == ({} if broken == "c++" else {"_C.abi3.so": "new"})


def test_cuda_that_fails_costs_the_cpu_nothing(source: Path, tmp_path: Path) -> None:
    torch = tmp_path / "packages" / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("cuda: Optional[str] = '12.4'\n")
    toolkit = tool(tmp_path / "bin" / "nvcc", works=False).parent
    done = build(source, cxx=tool(tmp_path / "c++"), PATH=str(toolkit), PYTHONPATH=str(torch.parent))
    assert done.returncode == 0, done.stderr
    assert "WARNING: csrc/cuda/ was not compiled" in done.stderr
    assert "in plain torch on GPUs" in done.stderr
    assert "slower" not in done.stderr
    assert libraries(source) == {"_C.abi3.so": "new"}


def test_a_checkout_keeps_no_library_that_could_not_be_built_again(source: Path, tmp_path: Path) -> None:
    toolkit = tool(tmp_path / "bin" / "nvcc").parent
    done = build(source, cxx=tool(tmp_path / "c++"), FORCE_CUDA="1", PATH=str(toolkit))
    assert done.returncode == 0, done.stderr
    assert libraries(source) == {"_C.abi3.so": "new", "_C_cuda.abi3.so": "new"}
    done = build(source, cxx=tool(tmp_path / "c++", content="newer"), FORCE_CUDA="0", PATH=str(toolkit))
    assert libraries(source) == {"_C.abi3.so": "newer"}
    done = build(source, cxx="/no/compiler", FORCE_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "WARNING: csrc/ was not compiled" in done.stderr
    assert "5 to 15 times slower on a CPU" in done.stderr
    assert libraries(source) == {}


def test_a_wheel_holds_no_library_of_an_earlier_build(source: Path, tmp_path: Path) -> None:
    pip = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    found = []
    for name, works in (("first", True), ("second", False)):
        cxx = tool(tmp_path / "c++", works=works)
        done = build(source, *pip, str(tmp_path / name), ".", cxx=cxx, FORCE_CUDA="0")
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,) = (tmp_path / name).glob("*.whl")
        found.append([name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")])
    assert list(source.glob("build/lib*")), "pip built elsewhere, where nothing older was"
    assert found == [["sparse_detr/lib/_C.abi3.so"], []]


@pytest.mark.parametrize(
    ("known", "chosen", "wanted", "text"),
    [
        (("50", "80", "90"), "", ("80,sm_80", "90,sm_90", "90,compute_90"), "CUDA 12.4 for sm_80 sm_90 PTX_90"),
        (
            ("80", "90"),
            "8.0+PTX;9.0a",
            ("80,sm_80", "80,compute_80", "90a,sm_90a"),
            "CUDA 12.4 for sm_80 PTX_80 sm_90a",
        ),
    ],
)
def test_code_for_what_nvcc_knows_or_is_asked_for(
    source: Path, tmp_path: Path, known: tuple[str, ...], chosen: str, wanted: tuple[str, ...], text: str
) -> None:
    nvcc = tool(tmp_path / "bin" / "nvcc", known=known)
    environment = {"FORCE_CUDA": "1", "PATH": str(nvcc.parent), "TORCH_CUDA_ARCH_LIST": chosen}
    done = build(source, cxx=tool(tmp_path / "c++"), **environment)
    assert done.returncode == 0, done.stderr
    call = Path(f"{nvcc}.log").read_text().splitlines()[-1]
    assert re.findall(r"-gencode=arch=compute_(\S+?),code=(\S+)", call) == [tuple(pair.split(",")) for pair in wanted]
    (built,) = re.findall(r'SPARSE_DETR_CUDA_BUILD="(.+?)"', call)
    assert built == text
    assert not cuda_mismatches(built, "12.4", [(8, 6), (9, 0), (12, 0)])
    assert len(cuda_mismatches(built, "12.4", [(7, 5)])) == 1


@pytest.mark.parametrize("name", ["Hopper", "9", "sm_90", "9.0b", "9.0+"])
def test_architectures_that_are_no_numbers_are_refused(source: Path, tmp_path: Path, name: str) -> None:
    toolkit, cxx = tool(tmp_path / "bin" / "nvcc").parent, tool(tmp_path / "c++")
    done = build(source, cxx=cxx, FORCE_CUDA="1", PATH=str(toolkit), TORCH_CUDA_ARCH_LIST=f"8.0 {name}")
    assert done.returncode != 0
    assert f"TORCH_CUDA_ARCH_LIST: '{name}' is no number; give the numbers of compute capabilities" in done.stderr
    assert not Path(f"{cxx}.log").exists(), "compiled first"


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_the_toolkit_of_the_environment_comes_before_that_on_the_path(
    source: Path, tmp_path: Path, variable: str
) -> None:
    other = tool(tmp_path / "other" / "nvcc", works=False).parent
    toolkit = tool(tmp_path / "toolkit" / "bin" / "nvcc").parents[1]
    environment = {"FORCE_CUDA": "1", "PATH": str(other), variable: str(toolkit)}
    done = build(source, cxx=tool(tmp_path / "c++"), **environment)
    assert done.returncode == 0, done.stderr
    assert "_C_cuda.abi3.so" in libraries(source)
