"""A fingerprint of the code behind a command, so that an edit inside the package reruns the steps that use it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import epivi


@cache
def module_file(name: str) -> Path | None:
    """Source file of a module of the package, or None where the name is no module."""
    path = Path(epivi.__file__).parent.joinpath(*name.split(".")[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _source(name: str) -> bytes:
    file = module_file(name)
    if file is None:
        raise ValueError(f"{name} is no module of epivi")
    return file.read_bytes()


@cache
def imported_names(name: str) -> tuple[str, ...]:
    """Dotted names that a module of the package imports from the package, at any depth of its code."""
    return tuple(_imported(ast.parse(_source(name))))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def code_version(command: str) -> str:
    """Version of epivi and a hash of every module of the package that a command imports, directly or not."""
    found: set[str] = set()
    waiting = [f"epivi.commands.{command}"]
    while waiting:
        name = waiting.pop()
        if name.split(".")[0] == "epivi" and name not in found and module_file(name):
            found.add(name)
            waiting += [name.rpartition(".")[0], *imported_names(name)]
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(_source(name))
    return f"{epivi.__version__} {digest.hexdigest()[:16]}"
