"""Where a run came from: the code, the environment and the data, as tags and inputs of its MLflow run."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("sparse-detr", "torch", "ray", "mlflow-skinny", "numpy", "pyarrow")
_GIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUse:
    """A data set that a run reads."""

    name: str
    """Such as `train`."""
    source: str
    """URI of its annotations."""
    digest: str
    """SHA-256 of them."""
    images: int
    boxes: int


def provenance_tags() -> dict[str, str]:
    """Versions, machine, and the state of the git checkout that the command was started in, where it is one."""
    tags = {f"sparse_detr.version.{name}": found for name in _PACKAGES if (found := _version(name))}
    tags["sparse_detr.version.python"] = platform.python_version()
    tags["sparse_detr.machine"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    tags["mlflow.source.name"] = " ".join(sys.argv[:2])
    return tags | _git()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, str]:
    """MLflow's own names for commit and branch, so that its pages show them."""
    commit = _ask_git("rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _ask_git("status", "--porcelain", "--untracked-files=no")
    return {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": _ask_git("rev-parse", "--abbrev-ref", "HEAD") or "",
        "sparse_detr.git_changes": "unknown" if changes is None else str(len(changes.splitlines())),
    }


def _ask_git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
