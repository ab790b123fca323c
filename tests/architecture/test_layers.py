"""The house is flat: within a package no import leads on through more than six others, and none leads back."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LEVELS = 6
# What puts the parts of a service together, and what starts it.
ABOVE_ALL = ("app", "server", "program", "__main__")
PACKAGES = [
    *("command_server", "query_server", "projector", "shop"),
    *(f"tandem.{path.parent.name}" for path in sorted((ROOT / "tandem").glob("*/__init__.py"))),
]


def modules_of(package: str) -> dict[str, Path]:
    """Those of a package and of the packages in it, without what is generated or run by alembic."""
    found = {}
    for path in (ROOT / package.replace(".", "/")).rglob("*.py"):
        if "migrations" not in path.parts and not path.name.endswith("_pb2.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {it.name for it in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # What is imported may be a module of the package, or a name in it.
            names |= {node.module} | {f"{node.module}.{it.name}" for it in node.names}
    return names


def levels_of(package: str) -> dict[str, int]:
    """How many modules of the package a chain of imports has at most that begins at each. Raises CycleError."""
    modules = modules_of(package)
    graph = {name: (imports_of(path) & modules.keys()) - {name} for name, path in modules.items()}
    assert list(TopologicalSorter(graph).static_order()) != []

    @cache
    def levels(name: str) -> int:
        return 1 + max(map(levels, graph[name]), default=0)

    return {name: levels(name) for name in graph}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_few_levels_of_imports(package: str) -> None:
    levels = levels_of(package)
    assert {
        name: number
        for name, number in levels.items()
        if number > MOST_LEVELS and name.removeprefix(f"{package}.") not in ABOVE_ALL
    } == {}
