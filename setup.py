"""The compiled op (csrc/): one C++ file for each instruction set, and the CUDA part where it can be used.

A build that fails leaves a package that works in plain torch, and says so. FORCE_CUDA=1 builds the CUDA part beside a
torch without CUDA, and fails where it cannot; FORCE_CUDA=0 never builds it. nvcc is that of CUDA_HOME or CUDA_PATH, or
on the PATH; TORCH_CUDA_ARCH_LIST ("8.0 9.0+PTX") names architectures other than all.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
HEADERS = sorted(str(path) for pattern in ("*.h", "*/*.h", "*/*.cuh") for path in CSRC.glob(pattern))
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # libtorch 2.11 and newer
INSTRUCTION_SETS = {"base": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = [
        *INSTRUCTION_SETS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ]
# No -ffast-math: NaN and infinity have defined results.
KERNEL_FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # those that nvcc knows, and PTX of the newest
CPU_PART, CUDA_PART = "sparse_detr.lib._C", "sparse_detr.lib._C_cuda"


def torch_folder() -> Path:
    """Where torch is, without the seconds that importing it takes."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("torch is not in the build environment")
    return Path(found.origin).parent


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME or CUDA_PATH, or on the PATH."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = (shutil.which("nvcc", path=str(Path(home) / "bin")) for home in homes)
    return next(filter(None, found), None) or shutil.which("nvcc")


def insists_on_cuda() -> bool:
    """Whether a build that fails must fail, rather than leave plain torch."""
    return os.environ.get("FORCE_CUDA", "0") not in ("", "0")


def wants_cuda() -> bool:
    """A toolkit is there, and a torch that can use what it builds; or the user insists."""
    if "FORCE_CUDA" in os.environ:
        return insists_on_cuda()
    version_file = torch_folder() / "version.py" if importlib.util.find_spec("torch") else Path()
    with_cuda = version_file.is_file() and re.search(r"^cuda\b.*=\s*['\"]\d", version_file.read_text(), re.MULTILINE)
    return bool(with_cuda) and find_nvcc() is not None


def chosen_architectures() -> list[str]:
    """TORCH_CUDA_ARCH_LIST; empty where it is not set."""
    names = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for name in names:
        if not re.fullmatch(r"\d+\.?\d[af]?(\+PTX)?", name):
            example = "give the numbers of compute capabilities, such as 8.0, 9.0a or 12.0+PTX"
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: {name!r} is no number; {example}, or leave it unset")
    return names


def known_architectures(nvcc: str) -> list[str]:
    """Those of ARCHITECTURES that this nvcc knows; the newest with PTX, which chips that come later need."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    kept = [name for name in ARCHITECTURES if f"compute_{name.replace('.', '')}" in listed]
    if not kept:
        raise RuntimeError(f"{nvcc} knows none of {', '.join(ARCHITECTURES)}; install a newer CUDA toolkit")
    return [*kept[:-1], f"{kept[-1]}+PTX"]


def architecture_flags(nvcc: str) -> tuple[list[str], str]:
    """nvcc's flags, and the same for the doctor: `sm_80 sm_90 PTX_90`."""
    flags, names = [], []
    for name in chosen_architectures() or known_architectures(nvcc):
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        names.append(f"sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
            names.append(f"PTX_{number}")
    return flags, " ".join(names)


class BuildOp(build_ext):
    """Compiles the kernels once for each instruction set, and CUDA with nvcc."""

    def run(self) -> None:
        inplace = self.inplace  # setuptools puts it aside while it builds
        for name in (CPU_PART, CUDA_PART):  # an older one would be packed in place of one that fails
            self._library(name).unlink(missing_ok=True)
        try:
            super().run()
        except Exception as error:  # no compiler, no torch headers: whatever it is, plain torch does the work
            self.inplace = inplace
            if inplace:
                self.copy_extensions_to_source()
            if insists_on_cuda():
                raise
            self._say_slower(CPU_PART, error)

    def build_extension(self, ext: Extension) -> None:
        try:
            (self._build_cuda if ext.name == CUDA_PART else self._build_cpu)(ext)
        except Exception as error:
            self._library(ext.name).unlink(missing_ok=True)
            if insists_on_cuda():  # on the CPU's part too: without its schema the other does not load
                raise
            self._say_slower(ext.name, error)

    def _say_slower(self, name: str, error: Exception) -> None:
        what, where = "csrc/", "in plain torch, 5 to 15 times slower on a CPU"
        if name == CUDA_PART:
            what, where = "csrc/cuda/", "in plain torch on GPUs"
        sys.stderr.write(
            f"\nWARNING: {what} was not compiled ({error}).\nWARNING: sparse-detr will run the op {where}.\n\n"
        )

    def _build_cpu(self, ext: Extension) -> None:
        torch, objects = torch_folder(), []
        for name, flags in INSTRUCTION_SETS.items():
            objects += self.compiler.compile(
                [str(CSRC / "cpu" / "kernels.cpp")],
                output_dir=str(Path(self.build_temp) / name),
                extra_postargs=[
                    "-std=c++20",
                    "-fvisibility=hidden",
                    f"-DSPARSE_DETR_ISA={name}",
                    *KERNEL_FLAGS,
                    *flags,
                ],
            )
        build = f"torch {importlib.metadata.version('torch')}, {' '.join(INSTRUCTION_SETS)}"
        objects += self.compiler.compile(
            [str(CSRC / "deformable_attention.cpp")],
            output_dir=self.build_temp,
            extra_postargs=[
                *("-std=c++20", "-O2", "-fvisibility=hidden", STABLE_ABI, f'-DSPARSE_DETR_BUILD="{build}"'),
                *("-isystem", str(torch / "include")),
            ],
        )
        self.compiler.link_shared_object(
            objects, self._target(ext), library_dirs=[str(torch / "lib")], libraries=["torch_cpu", "c10"],
            target_lang="c++",
        )  # fmt: skip

    def _build_cuda(self, ext: Extension) -> None:
        nvcc = find_nvcc()
        if nvcc is None:
            raise RuntimeError("there is no nvcc: install the CUDA toolkit, and set CUDA_HOME or put nvcc on the PATH")
        torch, (flags, names) = torch_folder(), architecture_flags(nvcc)
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        release = re.search(r"release (\d+\.\d+)", text)
        build = f"CUDA {release[1] if release else '0.0'} for {names}"
        command = [
            *(nvcc, "-std=c++20", "-O3", "--threads=0", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
            *(STABLE_ABI, f'-DSPARSE_DETR_CUDA_BUILD="{build}"', "-isystem", str(torch / "include"), *flags),
            *(str(CSRC / "cuda" / "deformable_attention.cu"), "-o", self._target(ext)),
            *(f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"),
        ]
        sys.stderr.write(" ".join(command) + "\n")
        subprocess.run(command, check=True)

    def _library(self, name: str) -> Path:
        return Path(self.build_lib) / self.get_ext_filename(name)

    def _target(self, ext: Extension) -> str:
        target = self._library(ext.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(target)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".abi3.so"

    def copy_extensions_to_source(self) -> None:
        """For editable installs; what was not built goes, as an older one would not fit the sources."""
        for built in (self._library(CPU_PART), self._library(CUDA_PART)):
            target = built.relative_to(self.build_lib)
            if not built.is_file():
                target.unlink(missing_ok=True)
                continue
            target.parent.mkdir(exist_ok=True)
            # Beside it first: a process that runs keeps the file that it has loaded.
            shutil.copy(built, f"{target}.new")
            os.replace(f"{target}.new", target)


def extensions() -> list[Extension]:
    """The libraries to build; sources are listed for source distributions and for their dates."""
    cpu = [str(CSRC / "deformable_attention.cpp"), str(CSRC / "cpu" / "kernels.cpp")]
    found = [Extension(CPU_PART, cpu, depends=HEADERS, py_limited_api=True)]
    if wants_cuda():
        chosen_architectures()  # refused now, not after minutes of compiling
        cuda = [str(CSRC / "cuda" / "deformable_attention.cu")]
        found.append(Extension(CUDA_PART, cuda, depends=HEADERS, py_limited_api=True))
    return found


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOp},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
