"""Imports run down only: every package imports from the floors below it, wherever in a file the import stands."""

import ast
from pathlib import Path

import pytest

from config import ROOT

GROUND = {"utils", "config"}  # import nothing of ours
FIRST = GROUND | {"loss"}
BELOW = {  # package: what it may import besides itself
    "utils": set(),
    "config": set(),
    "loss": GROUND,
    "dataset": GROUND,
    "model": FIRST,
    "engine": FIRST | {"dataset", "model"},
}
CORE = FIRST | {"dataset", "model", "engine"}
BELOW |= {"app": CORE, "mini": CORE, "sd4match": CORE | {"app"}}
ROOF = CORE | {"app", "sd4match"}
BELOW |= {"script": ROOF | {"mini"}, "tests": ROOF | {"mini", "script"}}  # tests also call the commands
OURS = set(BELOW)
COMMANDS = {path.stem for path in ROOT.glob("*.py")}


def imported(path: Path) -> set[str]:
    """First words of the modules that a file imports, also inside functions and by importlib."""
    package = path.relative_to(ROOT).parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(".".join(package[: len(package) + 1 - node.level]) if node.level else node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return {name.split(".")[0] for name in names}


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", BELOW)
def test_a_package_imports_from_the_floors_below(package):
    assert files(package), f"{package} is gone: mend this table"
    allowed = BELOW[package] | {package} | (COMMANDS if package == "tests" else set())
    up = {str(path.relative_to(ROOT)): imported(path) & (OURS | COMMANDS) - allowed for path in files(package)}
    assert {file: names for file, names in up.items() if names} == {}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_imports_no_tests_and_no_mini_world(command):
    assert imported(ROOT / f"{command}.py") & {"tests", "mini", "script", *COMMANDS} == set()


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert packages <= OURS, f"give {packages - OURS} a floor"
