"""Structure of the packages: no import cycle, contracts without exceptions.

import-linter holds the layers in `make check`. This finds cycles in its own way, between modules, with imports inside
functions, under TYPE_CHECKING and behind a main guard: where three cycles once hid.
"""

from __future__ import annotations

import ast
import graphlib
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sparse_detr", "pipelines", "tune")


def modules_of(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    """Path of every module by its dotted name."""
    files = [path for name in packages for path in (root / name).rglob("*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports_of(name: str, path: Path, modules: Mapping[str, Path]) -> set[str]:
    """Modules that this one imports, wherever the statement is."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    ours = found & modules.keys()
    # `from package import module` needs the module; the package itself is but its docstring.
    inner = {one for one in ours if not any(other.startswith(f"{one}.") for other in ours)}
    return inner - {name}


def cycle_of(root: Path, packages: tuple[str, ...]) -> list[str]:
    """The modules of one cycle in order, the first again at the end; empty where there is none."""
    modules = modules_of(root, packages)
    sorter = graphlib.TopologicalSorter({name: imports_of(name, path, modules) for name, path in modules.items()})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_cycle() -> None:
    assert len(modules_of(ROOT, PACKAGES)) > 150
    assert cycle_of(ROOT, PACKAGES) == []


@pytest.mark.parametrize(
    "back",
    [
        "def draw():\n    from package.plot import kinds\n",
        "if __name__ == '__main__':\n    from package.plot import kinds\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.plot import kinds\n",
        "class Model:\n    @classmethod\n    def load(cls):\n        from package import plot\n",
        "import package.plot\n",
    ],
    ids=["function", "main guard", "type checking", "method, the module from its package", "plain"],
)
def test_a_cycle_is_found(tmp_path: Path, back: str) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text('"""A package."""\n')
    (tmp_path / "package" / "plot.py").write_text("from package.growth import measure\n")
    (tmp_path / "package" / "growth.py").write_text("import json\n")
    assert cycle_of(tmp_path, ("package",)) == []
    (tmp_path / "package" / "growth.py").write_text(back)
    assert set(cycle_of(tmp_path, ("package",))) == {"package.growth", "package.plot"}


def test_contracts_have_no_exceptions() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert len(contracts) >= 6
    assert [one["name"] for one in contracts if "ignore_imports" in one] == []
    layers = [one for one in contracts if "containers" in one]
    assert [one["exhaustive"] for one in layers] == [True, True], "a new module has to get a layer"
