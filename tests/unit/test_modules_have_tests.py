"""Tests mirror the package: each module has a test in the folder of its own, and no folder of tests is without one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from places import REPOSITORY
from test_imports import MODULES, PACKAGE, imported

UNIT = REPOSITORY / "tests" / "unit"
CASES = {path.stem: path for path in UNIT.glob("*_cases.py")}


def test_folders_of_tests_are_those_of_the_package() -> None:
    folders = {path.parent.relative_to(UNIT) for path in UNIT.rglob("test_*.py")}
    assert [str(folder) for folder in folders if not (PACKAGE / folder).is_dir()] == []
