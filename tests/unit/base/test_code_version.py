"""Which steps run anew after which edit of the package: those whose code it changes, and no other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import _lru_cache_wrapper, cache
from pathlib import Path

import pytest

import epivi
from epivi.base import code_version as versions
from epivi.base.code_version import code_version, reached

STEPS = {
    **{
        command: (command, None)
        for command in ("design", "ingest", "assemble", "quality", "relatives", "compare", "summary")
    },
    **{
        command: (command, "transmission")
        for command in ("compile", "fit", "evidence", "controls", "posterior", "diagnose")
    },
    **{f"{command} of states": (command, "epimutation") for command in ("fit", "evidence", "posterior", "states")},
}
# file, text and what it becomes -> steps that run anew.
EDITS = {
    "a comment": ("field/compiled/laplace.py", "\n\n\n", "\n\n# A remark.\n\n\n", set()),
    "a docstring": ("loci/store.py", '"""', '"""In other words: ', set()),
    "an annotation": ("discovery/weights.py", "-> Weights:", "-> object:", {"compare"}),
    "a reader of one format": ("ingest/formats/allc.py", "Column(6, ", "Column(7, ", {"ingest"}),
    "a column's description": (
        "quality/columns.py",
        "the number behind the warning",
        "what was measured",
        {"quality", "relatives"},
    ),
    "the sum over weights": ("discovery/weights.py", "EM_STEPS = 5", "EM_STEPS = 6", {"compare"}),
    "a reference method": ("families/transmission/locus/nuts.py", "MAX_STARTS = 100", "MAX_STARTS = 101", {"diagnose"}),
    "the guide of one family": (
        "families/transmission/guide.py",
        "SITE_ITERATIONS = 3",
        "SITE_ITERATIONS = 4",
        {"fit", "diagnose"},
    ),
    "what all loci share by the evidence": (
        "families/transmission/reweighting.py",
        "START_WEIGHT = 0.01",
        "START_WEIGHT = 0.02",
        {"fit"},
    ),
    "the inner integral": (
        "field/compiled/expectation_propagation.py",
        "MAX_SWEEPS = 40",
        "MAX_SWEEPS = 41",
        {"compile", "design", "fit", "evidence", "controls", "diagnose"},
    ),
    "the evidence of one family": (
        "families/epimutation/quadrature.py",
        "MOST_HALVINGS = 2",
        "MOST_HALVINGS = 3",
        {"evidence of states"},
    ),
    "the bound of all families": (
        "fit/svi.py",
        "HOLDOUT_DRAWS = 4",
        "HOLDOUT_DRAWS = 5",
        {"fit", "fit of states"},
    ),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that the versions are taken from."""
    folder = tmp_path / "epivi"
    shutil.copytree(Path(epivi.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(epivi, "__file__", str(folder / "__init__.py"))
    forget()
    yield folder
    forget()


def forget() -> None:
    """All but what a source says, whatever file it is in."""
    for name, value in vars(versions).items():
        if isinstance(value, _lru_cache_wrapper) and name != "_parsed":
            value.cache_clear()


def all_versions() -> dict[str, str]:
    forget()
    return {step: code_version(*arguments) for step, arguments in STEPS.items()}


@cache
def unedited() -> dict[str, str]:
    """Of the package as it stands: no version depends on where it lies, which a copy without an edit shows."""
    return all_versions()


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_what_it_changes(edit: str, request: pytest.FixtureRequest) -> None:
    name, old, new, steps = EDITS[edit]
    before = unedited()
    package = request.getfixturevalue("package")
    path = package / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    after = all_versions()
    assert {step for step in STEPS if before[step] != after[step]} == steps


def test_a_command_of_a_family_needs_its_name() -> None:
    with pytest.raises(ValueError, match="takes the step 'evidence' of a family"):
        code_version("evidence")
    with pytest.raises(ValueError, match="is no module"):
        code_version("evidense")


def test_what_a_command_reaches_includes_what_it_must() -> None:
    """Through imports in functions, registries, modules taken as a whole, and the steps of a family."""
    found = {f"{item.module}.{item.name}" for item in reached("evidence", "transmission")}
    assert "epivi.field.compiled.laplace.laplace" in found
    assert "epivi.field.dense.laplace.laplace" in found
    assert not any(name.startswith(("epivi.families.transmission.locus.nuts", "epivi.lineage")) for name in found)
    formats = {f"epivi.ingest.formats.{name}.read" for name in ("allc", "bismark_cov", "dss")}
    readers = {f"{item.module}.{item.name}" for item in reached("ingest")}
    assert formats <= readers
