"""A fingerprint of the code behind a command, so that an edit inside the package reruns the steps that use it."""

import ast
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import epivi


@cache
def module_file(name):
    """Source file of a module of the package, or None where the name is no module."""
    path = Path(epivi.__file__).parent.joinpath(*name.split(".")[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def imported_names(name):
    """Dotted names that a module of the package imports from the package, at any depth of its code."""
    for node in ast.walk(ast.parse(module_file(name).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def code_version(command):
    """Version of epivi and a hash of every module of the package that a command imports, directly or not."""
    found, waiting = set(), [f"epivi.commands.{command}"]
    while waiting:
        name = waiting.pop()
        if name.split(".")[0] == "epivi" and name not in found and module_file(name):
            found.add(name)
            waiting += [name.rpartition(".")[0], *imported_names(name)]
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(module_file(name).read_bytes())
    return f"{epivi.__version__} {digest.hexdigest()[:16]}"
