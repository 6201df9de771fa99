"""Imports of the package run one way, and what must start at once does not import what takes long."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import epivi
from epivi.cli import COMMANDS
from epivi.commands.simulate import TEMPLATE_NAMES
from epivi.ingest.formats import FORMATS
from epivi.ingest.read import READERS
from epivi.results.query import TEXT_WRITERS
from epivi.results.selection import FORMATS as SELECTED_FORMATS
from epivi.simulate.templates import TEMPLATES

# Each folder may import those before it, and itself.
ORDER = (
    "base",
    "tables",
    "field",
    "config",
    "loci",
    "ingest",
    "cohort",
    "fit",
    "lineage",
    "quality",
    "divergence",
    "discovery",
    "simulate",
    "families",
    "results",
    "verify",
    "commands",
    "cli",
    "__main__",
)
PACKAGE = Path(epivi.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at any depth of its code, for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "epivi":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found - {module_name(path)}


GRAPH = {name: imported(path) for name, path in MODULES.items() if name != "epivi"}


def folder_of(module: str) -> str:
    return module.split(".")[1]


def test_folders_import_those_before_them_only() -> None:
    against = [
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if "." in other and ORDER.index(folder_of(other)) > ORDER.index(folder_of(module))
    ]
    assert against == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert list(TopologicalSorter(GRAPH).static_order())


def test_every_folder_has_its_place() -> None:
    assert {folder_of(name) for name in MODULES if "." in name} == set(ORDER)


def test_families_know_nothing_of_each_other() -> None:
    families = {name for name in MODULES if name.startswith("epivi.families.") and name.count(".") > 2}
    across = {
        (module, other)
        for module in families
        for other in GRAPH[module]
        if other in families and other.split(".")[2] != module.split(".")[2]
    }
    assert across == set()


def test_functions_import_only_what_is_heavy_or_seldom_needed() -> None:
    """Commands stay light for `--help`; elsewhere, what takes long to import and not every caller needs."""
    heavy = {"torch", "torch.distributed", "arviz_stats.base", "duckdb", "jsonschema", "yaml", "pysam"}
    found = set()
    for name, path in MODULES.items():
        if folder_of(name + ".") == "commands":
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        modules = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                        found |= {(name, module) for module in modules if module not in heavy}
    # What a fit learned is a type of the density, which needs torch; a summary of a fit's problem does not.
    assert found == {
        ("epivi.families.epimutation.prepare", "epivi.families.epimutation.density"),
        ("epivi.families.inputs", "epivi.fit.folder"),
        ("epivi.families.transmission.prepare", "epivi.families.transmission.density"),
    }


HEAVY = ("duckdb", "jsonschema", "numba", "numpy", "pandas", "pyarrow", "pyro", "pysam", "scipy", "torch", "yaml")
# What the commands that never need torch import for their work.
WITHOUT_TORCH = {
    "ingest": "epivi.ingest.sample",
    "assemble": "epivi.cohort.assembly",
    "quality": "epivi.quality.check",
    "relatives": "epivi.quality.relatives",
    "query": "epivi.results.query",
    "compare": "epivi.discovery.weights",
    "posterior of transmission": "epivi.families.transmission.posterior",
    "summary": "epivi.results.summary",
    "design": "epivi.verify.next_samples",
}


def loaded(code: str) -> set[str]:
    """Modules of a fresh interpreter after some code, which must end without an error."""
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    arguments = [*([command] if command else []), "--help"]
    assert loaded(f"from epivi.cli import main; main({arguments})") & set(HEAVY) == set()


@pytest.mark.parametrize("command", WITHOUT_TORCH)
def test_these_commands_work_without_torch(command: str) -> None:
    assert "torch" not in loaded(f"import {WITHOUT_TORCH[command]}")


def test_names_that_parsers_know_without_imports() -> None:
    assert set(FORMATS) == set(READERS)
    assert set(TEMPLATE_NAMES) == set(TEMPLATES)
    assert (*TEXT_WRITERS, "parquet") == SELECTED_FORMATS
