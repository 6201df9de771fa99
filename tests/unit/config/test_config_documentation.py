"""config/README.md says what the schemas say, and its examples work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import REPOSITORY

from epivi.cohort.haplotypes import check_haplotypes
from epivi.cohort.pedigree import check_samples
from epivi.cohort.pedigree_files import read_pedigree
from epivi.cohort.samples import read_sample_sheet
from epivi.config.load import load_config, load_schema

README = (REPOSITORY / "config" / "README.md").read_text()
ROWS = {
    tuple(cell.strip() for cell in line.strip("| ").split(" | ")) for line in README.splitlines() if line[:1] == "|"
}
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def _schema(name: str) -> dict[str, Any]:
    return load_schema(name)


def _shown(default: Any) -> str:
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _keys(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Dotted path and schema of everything that a user can write below `path`."""
    below = [(name, child) for name, child in schema.get("properties", {}).items()]
    below += [("<name>", child) for child in [schema.get("additionalProperties")] if isinstance(child, dict)]
    for name, child in below:
        yield f"{path}{name}", child
        yield from _keys(child, f"{path}{name}.")


KEYS = [
    (path, schema)
    for path, schema in _keys(_schema("config"))
    if "default" in schema or not ("properties" in schema or "additionalProperties" in schema)
]


@pytest.mark.parametrize(("path", "schema"), KEYS, ids=[path for path, _ in KEYS])
def test_every_key_stands_in_the_readme(path: str, schema: Mapping[str, Any]) -> None:
    if path == "model.hypotheses":
        default = "five, see below"
    elif "default" in schema:
        default = _shown(schema["default"])
    else:
        default = "absent" if "<name>" in path else "required"
    assert (f"`{path}`", schema["expected"], default, schema["description"]) in ROWS


def test_the_readme_documents_no_other_key() -> None:
    documented = {row[0].strip("`") for row in ROWS if len(row) == 4 and row[0].startswith("`")}
    columns = {name for sheet in ("samples", "pedigree") for name in _schema(sheet)["properties"]}
    assert documented == {path for path, _ in KEYS} | columns


@pytest.mark.parametrize("name", ["samples", "pedigree"])
def test_every_column_stands_in_the_readme(name: str) -> None:
    schema = _schema(name)
    for column, child in schema["properties"].items():
        default = "required" if column in schema["required"] else _shown(child["default"])
        assert (f"`{column}`", child["expected"], default, child["description"]) in ROWS


def test_the_default_hypotheses_stand_in_the_readme() -> None:
    default = _schema("config")["properties"]["model"]["properties"]["hypotheses"]["default"]
    shown = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]
    assert {"model": {"hypotheses": default}} in shown
    others = _schema("config")["properties"]["model"]["properties"]["hypotheses"]["family_defaults"]
    for family, hypotheses in others.items():
        assert {"model": {"family": family, "hypotheses": hypotheses}} in shown


def test_yaml_examples_load(tmp_path: Path) -> None:
    texts = [text for kind, text in BLOCKS if kind == "yaml"]
    assert len(texts) >= 6
    for text in texts:
        (tmp_path / "config.yaml").write_text(text)
        load_config(str(tmp_path / "config.yaml"))


def test_sheet_and_pedigree_examples_load(tmp_path: Path) -> None:
    texts = [text for kind, text in BLOCKS if kind == "text"]
    sheets = [text for text in texts if text.startswith("sample\t")]
    pedigrees = [text for text in texts if text.startswith("individual\t")]
    assert (len(sheets), len(pedigrees)) == (3, 2)
    for text in reversed(pedigrees):
        (tmp_path / "pedigree.tsv").write_text(text)
        pedigree = read_pedigree(str(tmp_path / "pedigree.tsv"))
    for text in sheets:
        (tmp_path / "samples.tsv").write_text(text)
        sheet = read_sample_sheet(tmp_path / "samples.tsv")
        check_samples(sheet, pedigree)
        check_haplotypes(sheet)
