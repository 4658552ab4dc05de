"""The import directions of docs/architecture.md, checked on the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FLOORS = (
    ("linearconv",),
    ("linearconv.engine",),
    ("data", "models"),
    ("configs",),
    ("train", "eval"),
    ("scripts.bench", "scripts.deployment", "scripts.jobs", "scripts.evidence"),
    ("scripts.compression",),
    ("scripts",),
)
"""From the lowest to the highest; a module imports from its own floor or from a lower one."""


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [
    *(REPOSITORY / f"{entry}.py" for entry in ("train", "eval")),
    *(
        path
        for room in ("linearconv", "models", "data", "configs", "scripts")
        for path in sorted((REPOSITORY / room).rglob("*.py"))
    ),
]
MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules that a file names in its imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & set(MODULES) or {node.module}
    return found


IMPORTS = {module: imports(path) for module, path in MODULES.items()}


def room(module: str) -> str:
    """The longest name among the floors that the module is in."""
    names = [name for floor in FLOORS for name in floor]
    return max((n for n in names if f"{module}.".startswith(f"{n}.")), key=len, default="")


def floor(module: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if room(module) in names)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upwards_or_across(module):
    for other in IMPORTS[module]:
        if room(other):
            same_room = room(other) == room(module)
            assert same_room or floor(other) < floor(module), f"{module} imports {other}"


def test_there_is_no_circle():
    ours = {module: found & set(MODULES) - {module} for module, found in IMPORTS.items()}
    tuple(TopologicalSorter(ours).static_order())  # raises CycleError


def test_the_layer_needs_torch_alone():
    """What the wheel ships."""
    for module, found in IMPORTS.items():
        if room(module) == "linearconv":
            foreign = {name.partition(".")[0] for name in found} - {"torch", "linearconv"}
            assert foreign <= sys.stdlib_module_names, f"{module} imports {foreign}"


def test_the_engine_knows_the_ways_to_be_fast_through_one_door():
    for module, found in IMPORTS.items():
        if room(module) == "linearconv.engine" and not module.startswith("linearconv.engine.fast"):
            inside = {name for name in found if name.startswith("linearconv.engine.fast")}
            assert inside <= {"linearconv.engine.fast.runtime"}, f"{module} imports {inside}"


def test_the_engine_does_not_know_hydra():
    for module, found in IMPORTS.items():
        if module.startswith("linearconv"):
            assert not {name for name in found if name.partition(".")[0] in ("hydra", "omegaconf")}


def test_no_path_is_edited_and_results_have_no_code():
    for path in FILES:
        assert "sys.path" not in path.read_text(), path
    assert not list((REPOSITORY / "results").rglob("*.py"))


def test_importing_the_layer_loads_torch_alone():
    """What it adds to torch's own import is read at once (0.03 s here; 0.3 s is the bar)."""
    code = (
        "import sys, torch; before = set(sys.modules); import linearconv;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {"linearconv", "torch", *sys.stdlib_module_names}
