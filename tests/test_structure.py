"""The order of the packages and the size of the files."""

import ast
import graphlib
import re
from pathlib import Path

import pytest
from programs import ROOT

PROGRAMS = ("train", "compute_projections", "reinit_layers")
#: From the bottom to the top: a room imports from itself and from those before it.
ROOMS = (
    *("core", "models", "data", "utils.process", "utils.projections", "utils.correlation", "utils.snapshots"),
    *("utils.arguments", "utils.options", "utils.runs", "utils.results", "utils.sources"),
    *("utils.training", "utils.reinit", "utils.plots"),
)
FILES = sorted(
    [ROOT / f"{name}.py" for name in PROGRAMS]
    + [path for room in ("core", "models", "data", "utils") for path in Path(ROOT, room).rglob("*.py")]
)


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
}


def imports_of(path: Path) -> set[str]:
    """Return our modules that a file imports, wherever in the file it does so."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return names & MODULES.keys()


def room_of(module: str) -> str | None:
    """Return the room of a module; None for a program and for the package utils itself."""
    return next((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), None)


def may_import(importer: str, imported: str) -> bool:
    """Return whether the order of the rooms allows an import."""
    if imported in PROGRAMS:
        return False
    if importer in PROGRAMS or imported == "utils":
        return True
    importer, imported = room_of(importer), room_of(imported)
    if importer in ("models", "data"):
        return imported in (importer, "core")
    return ROOMS.index(imported) <= ROOMS.index(importer)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_its_room_and_those_below(module):
    assert room_of(module) or module in (*PROGRAMS, "utils"), "not in a room that this test knows"
    assert [name for name in sorted(imports_of(MODULES[module])) if not may_import(module, name)] == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports_of(path) - {module} for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_files_are_short():
    """Those of networks and datasets do not count in the sum: anyone may add one."""
    texts = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    lines = {module: len(text.splitlines()) for module, text in texts.items()}
    assert {module: count for module, count in lines.items() if count > 400} == {}
    counted = [module for module, text in texts.items() if not re.search(r"^ *@?register\(", text, re.MULTILINE)]
    assert sum(lines[module] for module in counted) <= 7_500
