"""No module imports itself through others, by imports inside functions, main guards and TYPE_CHECKING included."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sparse_detr", "pipelines", "tune")


def modules(root: Path, packages: Sequence[str]) -> dict[str, Path]:
    """Every module of the packages by its dotted name."""
    found = {}
    for package in packages:
        for file in (root / package).rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path) -> Iterator[tuple[str, str]]:
    """(module, attribute or "") of every import statement, wherever it stands."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((base, alias.name) for alias in node.names)


def graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Modules that each module imports, of those given."""
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        targets = (f"{base}.{item}" if f"{base}.{item}" in files else base for base, item in imports(name, file))
        found[name] = {target for target in targets if target in files}
    return found


def cycle(root: Path, packages: Sequence[str]) -> list[str]:
    """Modules of one import cycle, the first again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph(modules(root, packages))).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others() -> None:
    assert len(modules(ROOT, PACKAGES)) > 100
    assert cycle(ROOT, PACKAGES) == []


# The three shapes that version 0.1 had: growth <-> growth_plot, pretrained <-> sparse_detr over checkpoint, and the op
# <-> its self-test.
PLANTED = {
    "a local import": {
        "growth": "def main():\n    from planted.growth_plot import draw\n",
        "growth_plot": "from planted.growth import LIMIT\n",
    },
    "three modules, the last by TYPE_CHECKING": {
        "detector": "from planted import pretrained\n",
        "pretrained": "from .checkpoint import load\n",
        "checkpoint": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from planted.detector import Model\n",
    },
    "a main guard": {
        "op": "if __name__ == '__main__':\n    import planted.self_test\n",
        "self_test": "import planted.op\n",
    },
}


@pytest.mark.parametrize("sources", PLANTED.values(), ids=PLANTED)
def test_a_planted_cycle_is_found(tmp_path: Path, sources: Mapping[str, str]) -> None:
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text)
    assert set(cycle(tmp_path, ["planted"])) == {f"planted.{name}" for name in sources}
    (folder / f"{next(iter(sources))}.py").write_text("import os\n")
    assert cycle(tmp_path, ["planted"]) == []


def test_contracts_have_no_exceptions() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert contracts
    assert [one["name"] for one in contracts if "ignore_imports" in one] == []
