"""Files that `pip install .` leaves in an environment of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sparse_detr", "pipelines", "tune")


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=240, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline, from a copy, so that nothing of an earlier build gets in and the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "csrc", folder / "source" / "csrc")
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder / "source")
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    # Without the CUDA part, which takes minutes where there is a toolkit.
    _run(sys.executable, *build, folder / "source", cwd=folder, FORCE_CUDA="0")
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    files = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*")
             if path.is_file() and path.suffix not in (".pyc", ".so")}  # fmt: skip
    files.add("sparse_detr/lib/_C.abi3.so")
    assert {"pipelines/demo/report.html.jinja", *(f"{name}/py.typed" for name in PACKAGES)} <= files
    assert re.search(r"-cp311-abi3-\w+\.whl$", wheel.name)
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == files


@pytest.mark.slow
def test_the_wheel_requires_what_the_project_says(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_bytes(archive.read(name))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    for extra, lines in project["optional-dependencies"].items():
        wanted += [Requirement(f'{line}; extra == "{extra}"') for line in lines]
    assert {Requirement(line) for line in metadata.get_all("Requires-Dist", [])} == set(wanted)
    assert (metadata["Name"], metadata["Requires-Python"]) == ("sparse-detr", project["requires-python"])


@pytest.mark.slow
def test_the_installed_command_runs_and_its_requirements_are_met(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that sees this one's packages, but not this one's sparse-detr."""
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    _run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Read after our own packages; editable installs there have no effect, as their .pth files are not read.
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = _run(python, "-c", "import pipelines, sparse_detr, tune; print(tune.__file__)", cwd=tmp_path)
    assert where.strip() == str(packages / "tune" / "__init__.py")
    shown = _run(environment / "bin" / "sparse-detr", "--help", cwd=tmp_path)
    assert all(re.search(rf"^  {command}\b", shown, re.MULTILINE) for command in ("demo", "train", "predict", "doctor"))
    assert "No broken requirements found." in _run(*pip, "check", cwd=tmp_path)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_after_cleaning_the_op_is_built_again(tmp_path: Path) -> None:
    """`make clean` removes the op; a stamp that stayed would say that all is installed."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = [tmp_path / ".venv" / "bin" / "python", tmp_path / "sparse_detr" / "errors.py"]
    removed = [tmp_path / ".venv" / ".installed", tmp_path / "sparse_detr" / "lib" / "_C.abi3.so"]
    for path in kept + removed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _run("make", "clean", cwd=tmp_path)
    assert [path.exists() for path in kept + removed] == [True, True, False, False]
