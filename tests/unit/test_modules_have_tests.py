"""Tests mirror the package: each module is reached by a test in the folder of its own name."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from places import REPOSITORY
from test_imports import MODULES, PACKAGE

UNIT = REPOSITORY / "tests" / "unit"
# What every method of these folders must satisfy is asked of all of them together.
CONFORMANCE = REPOSITORY / "tests" / "conformance"
FOLDERS_OF_METHODS = ("field/dense", "families/transmission/locus")
# Reached by their names, as the configuration and the sample sheet give them.
REGISTRIES = {"ingest/formats": "ingest", "commands": "commands"}
# Types that hold nothing to test.
TYPES_ALONE = {"epivi.families.family"}
TESTS = {path: ast.parse(path.read_text()) for path in [*UNIT.rglob("test_*.py"), *CONFORMANCE.glob("test_*.py")]}


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules of the package that a test imports."""
    found = set()
    for node in ast.walk(TESTS[path]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("epivi"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)


@cache
def words(path: Path) -> frozenset[str]:
    """Words of a test's texts, such as the command of a line and the name of a format."""
    texts = (node.value for node in ast.walk(TESTS[path]) if isinstance(node, ast.Constant))
    return frozenset(word for text in texts if isinstance(text, str) for word in text.split())


def modules() -> list[str]:
    """Those with something to test: no table of columns, all of which tests/unit/tables/test_schema.py holds."""
    without = ("__init__.py", "__main__.py", "columns.py")
    return sorted(name for name, path in MODULES.items() if path.name not in without and name not in TYPES_ALONE)


@pytest.mark.parametrize("module", modules())
def test_a_module_is_reached_by_a_test_of_its_own(module: str) -> None:
    """One in the folder that mirrors the module's, or in one below."""
    folder = str(MODULES[module].parent.relative_to(PACKAGE))
    home = UNIT / REGISTRIES.get(folder, folder)
    own = [path for path in TESTS if path.parent == home or (home != UNIT and home in path.parents)]
    if folder in FOLDERS_OF_METHODS:
        own += [path for path in TESTS if path.parent == CONFORMANCE]
    named = [path for path in own if folder in REGISTRIES and module.split(".")[-1] in words(path)]
    assert named or [path for path in own if module in imported(path)], f"no test in {home} reaches {module}"


def test_folders_of_tests_are_those_of_the_package() -> None:
    folders = {path.parent.relative_to(UNIT) for path in TESTS if path.is_relative_to(UNIT)}
    assert [str(folder) for folder in folders if not (PACKAGE / folder).is_dir()] == []


def test_only_one_file_knows_where_the_repository_is() -> None:
    """A test that counts the folders above it skips itself, or fails, when it is moved."""
    counted = "__file__)" + ".resolve().parents"
    assert [path.name for path in UNIT.rglob("*.py") if counted in path.read_text()] == ["places.py"]
