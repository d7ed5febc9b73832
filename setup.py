"""The compiled op (csrc/): one C++ file for each instruction set, and the CUDA part where it can be used.

A build that fails leaves a package that works in plain torch, and says so. FORCE_CUDA=1 builds the CUDA part beside a
torch without CUDA, FORCE_CUDA=0 never; TORCH_CUDA_ARCH_LIST ("8.0 9.0+PTX") names architectures other than all.
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
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX")


def torch_folder() -> Path:
    """Where torch is, without the seconds that importing it takes."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("torch is not in the build environment")
    return Path(found.origin).parent


def wants_cuda() -> bool:
    """A toolkit is there, and a torch that can use what it builds; or the user insists."""
    forced = os.environ.get("FORCE_CUDA")
    if forced is not None:
        return forced not in ("", "0")
    version_file = torch_folder() / "version.py" if importlib.util.find_spec("torch") else Path()
    with_cuda = version_file.is_file() and re.search(r"^cuda\b.*=\s*['\"]\d", version_file.read_text(), re.MULTILINE)
    return bool(with_cuda) and shutil.which("nvcc") is not None


def architecture_flags() -> tuple[list[str], str]:
    """nvcc's flags, and the same for the doctor: `sm_90 PTX`."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    wanted = chosen or [name for name in ARCHITECTURES if _number(name) in {text.split("_")[1] for text in known}]
    flags, names = [], []
    for name in wanted:
        number = _number(name)
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        names.append(f"sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
            names.append("PTX")
    return flags, " ".join(names)


def _number(name: str) -> str:
    return name.removesuffix("+PTX").replace(".", "")


class BuildOp(build_ext):
    """Compiles the kernels once for each instruction set, and CUDA with nvcc."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # no compiler, no torch headers: whatever it is, plain torch does the work
            self._say_slower(error)

    def build_extension(self, ext: Extension) -> None:
        try:
            (self._build_cuda if ext.name.endswith("_cuda") else self._build_cpu)(ext)
        except Exception as error:
            if ext.name.endswith("_cuda") and os.environ.get("FORCE_CUDA", "0") not in ("", "0"):
                raise
            self._say_slower(error)

    def _say_slower(self, error: Exception) -> None:
        where = "the op in plain torch, 5 to 15 times slower on a CPU"
        sys.stderr.write(f"\nWARNING: csrc/ was not compiled ({error}).\nWARNING: sparse-detr will run {where}.\n\n")

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
        torch, (flags, names) = torch_folder(), architecture_flags()
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
        release = re.search(r"release (\d+\.\d+)", text)
        build = f"CUDA {release[1] if release else '0.0'} for {names}"
        command = [
            *("nvcc", "-std=c++20", "-O3", "--threads=0", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
            *(STABLE_ABI, f'-DSPARSE_DETR_CUDA_BUILD="{build}"', "-isystem", str(torch / "include"), *flags),
            *(str(CSRC / "cuda" / "deformable_attention.cu"), "-o", self._target(ext)),
            *(f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"),
        ]
        sys.stderr.write(" ".join(command) + "\n")
        subprocess.run(command, check=True)

    def _target(self, ext: Extension) -> str:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(target)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".abi3.so"

    def copy_extensions_to_source(self) -> None:
        """For editable installs; leaves out what could not be built."""
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            if (Path(self.build_lib) / name).is_file():
                Path(name).parent.mkdir(exist_ok=True)
                # Beside it first: a process that runs keeps the file that it has loaded.
                shutil.copy(Path(self.build_lib) / name, f"{name}.new")
                os.replace(f"{name}.new", name)


def extensions() -> list[Extension]:
    """The libraries to build; sources are listed for source distributions and for their dates."""
    cpu = [str(CSRC / "deformable_attention.cpp"), str(CSRC / "cpu" / "kernels.cpp")]
    found = [Extension("sparse_detr.lib._C", cpu, depends=HEADERS, py_limited_api=True)]
    if wants_cuda():
        cuda = [str(CSRC / "cuda" / "deformable_attention.cu")]
        found.append(Extension("sparse_detr.lib._C_cuda", cuda, depends=HEADERS, py_limited_api=True))
    return found


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOp},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
