"""The version of the code behind a step: a hash of what its command reaches, and of nothing else.

Reached is a function, class or constant of the package that the command names, and what those name in turn. Compared
are syntax trees without docstrings, so that comments, documentation and layout do not count; nor do names that stand in
annotations alone. Steps of a model family are reached through `family_step`, whose second argument says which.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import epivi

PACKAGE = "epivi"
FAMILY_STEP = "family_step"
# Parts of the syntax tree that say nothing, or that the tree says elsewhere.
WITHOUT_MEANING = ("ctx", "type_comment", "kind")
ANNOTATIONS = ("annotation", "returns")


class Definition(NamedTuple):
    """A top-level name of a module; the name is None for a module as a whole."""

    module: str
    name: str | None


class Statement(NamedTuple):
    """A top-level statement: its meaning as text, and the names, imports and steps of families that it uses."""

    meaning: str
    names: frozenset[str]
    imports: dict[str, Definition]
    family_steps: tuple[str, ...]


class Module(NamedTuple):
    """A module of the package: statements by the names they define, those that define none, and imported names."""

    definitions: dict[str, list[Statement]]
    others: list[Statement]
    imports: dict[str, Definition]


@cache
def module_file(name: str) -> Path | None:
    """Source file of a module of the package, or None where the name is no module."""
    path = Path(epivi.__file__).parent.joinpath(*name.split(".")[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def code_version(command: str, family: str | None = None) -> str:
    """Version of epivi and a hash of the code that a command reaches, with the steps of a family that it takes.

    Raises ValueError for a name that is no command, and where a command takes steps of a family and none is given.
    """
    lines = (f"{item.module}.{item.name} {_meaning(item)}" for item in sorted(reached(command, family)))
    digest = hashlib.sha256("\n".join(lines).encode())
    return f"{epivi.__version__} {digest.hexdigest()[:16]}"


@cache
def reached(command: str, family: str | None = None) -> frozenset[Definition]:
    """Every definition that a command reaches; raises as `code_version`."""
    found: set[Definition] = set()
    waiting = [Definition(f"{PACKAGE}.commands.{command}", None)]
    while waiting:
        item = waiting.pop()
        if item not in found:
            found.add(item)
            waiting += _direct(item, family)
    return frozenset(item for item in found if item.name is not None)


def _direct(item: Definition, family: str | None) -> Iterator[Definition]:
    """What a definition, or a module as a whole, names of the package."""
    module = _read(item.module)
    if item.name is None:
        yield from (Definition(item.module, name) for name in module.definitions)
        for target in module.imports.values():  # as attributes of the module they can be used from anywhere
            yield from _of_import(target)
    # Whatever is run when a module is imported belongs to everything in it.
    for statement in (*module.others, *(module.definitions[item.name] if item.name else ())):
        for name in statement.names:
            imported = statement.imports.get(name) or module.imports.get(name)
            if imported:
                yield from _of_import(imported)
            elif name in module.definitions:
                yield Definition(item.module, name)
        for step in statement.family_steps:
            if family is None:
                raise ValueError(f"{item.module} takes the step {step!r} of a family: expected the family's name")
            module_of_step = f"{PACKAGE}.families.{family}.{step}"
            if module_file(module_of_step):  # a family without states has no such step
                yield Definition(module_of_step, None)


def _of_import(target: Definition) -> Iterator[Definition]:
    """A name that is imported: a module, or a definition, maybe through modules that import it themselves."""
    as_module = f"{target.module}.{target.name}" if target.name else target.module
    module = _read(target.module) if target.name and module_file(target.module) else None
    if module and target.name in module.definitions:
        yield target
    elif module_file(as_module):
        yield Definition(as_module, None)
    elif module and target.name in module.imports:
        yield from _of_import(module.imports[target.name])


def _meaning(item: Definition) -> str:
    """Hash of a definition and of what its module runs besides."""
    module = _read(item.module)
    text = "\n".join(statement.meaning for statement in (*module.others, *module.definitions[item.name or ""]))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _read(name: str) -> Module:
    file = module_file(name)
    if file is None:
        raise ValueError(f"{name} is no module of {PACKAGE}")
    return _parsed(name, file.read_bytes())


@cache
def _parsed(name: str, source: bytes) -> Module:
    """A module of this source."""
    module = Module({}, [], {})
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module.imports.update(_imports(node))
            continue
        if _is_docstring(node) or _is_for_typing(node):
            continue
        names, statement = _defined(node), _Reader(name).read(node)
        for defined in names:
            module.definitions.setdefault(defined, []).append(statement)
        if not names:
            module.others.append(statement)
    return module


class _Reader:
    """Walks one statement once."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._words: list[str] = []
        self._names: set[str] = set()
        self._imports: dict[str, Definition] = {}
        self._steps: list[str] = []

    def read(self, node: ast.stmt) -> Statement:
        self._visit(node, is_run=True)
        return Statement(" ".join(self._words), frozenset(self._names), self._imports, tuple(self._steps))

    def _visit(self, node: ast.AST, is_run: bool) -> None:
        if isinstance(node, ast.Name) and is_run:
            self._names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self._imports |= _imports(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == FAMILY_STEP:
            self._steps.append(self._step(node))
        self._words.append(f"({type(node).__name__}")
        for field in node._fields:
            if field in WITHOUT_MEANING:
                continue
            value = getattr(node, field, None)
            if isinstance(value, ast.AST):
                self._visit(value, is_run and field not in ANNOTATIONS)
            elif isinstance(value, list):
                self._words.append("[")
                for child in value:
                    if isinstance(child, ast.AST) and not (field == "body" and _is_docstring(child)):
                        self._visit(child, is_run)
                    elif not isinstance(child, ast.AST):
                        self._words.append(repr(child))
                self._words.append("]")
            else:
                self._words.append(repr(value))
        self._words.append(")")

    def _step(self, call: ast.Call) -> str:
        step = call.args[1]
        if isinstance(step, ast.Constant):
            return str(step.value)
        raise ValueError(f"{self._module} line {call.lineno}: the step of {FAMILY_STEP} is no constant")


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        stored = [part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        return [part.id for part in stored if isinstance(part.ctx, ast.Store)]
    return []


def _imports(node: ast.Import | ast.ImportFrom) -> dict[str, Definition]:
    """Names that an import binds to parts of the package."""
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        is_own = module.split(".")[0] == PACKAGE
        return {alias.asname or alias.name: Definition(module, alias.name) for alias in node.names if is_own}
    own = [alias for alias in node.names if alias.name.split(".")[0] == PACKAGE]
    return {alias.asname or PACKAGE: Definition(alias.name, None) for alias in own}


def _is_for_typing(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
