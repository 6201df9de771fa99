"""`epivi relatives` on a folder of loci: its tables, its figure, its verdict, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from quality_cases import draw, write_store, write_tables

from epivi.base.errors import UserError
from epivi.commands.relatives import command
from epivi.quality.columns import QUALITY_TABLES, VERDICT_METADATA
from epivi.tables.parquet import open_parquet, read_table


def options(folder: Path, template: str, families: int) -> list[str]:
    cohort = draw(41, template, families, loci=600)
    paths = {"loci": str(write_store(folder / "loci", cohort)), **write_tables(folder, cohort)}
    named = [word for name, path in paths.items() for word in (f"--{name}", path)]
    return [*named, "--output", str(folder / "relatives")]


@pytest.mark.parametrize(("template", "families", "words"), [("quartet", 3, "mates do not"), ("trio", 1, "no mates")])
def test_tables_figure_and_verdict(
    template: str, families: int, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    done = CliRunner().invoke(command, [*options(tmp_path, template, families), "--config", "{}"])
    assert done.exception is None, done.output
    output = tmp_path / "relatives"
    table = read_table(output / "relatives.parquet", "relatives")
    assert table.column_names == [column.name for column in QUALITY_TABLES["relatives"]]
    assert set(table["kind"].to_pylist()) >= {"mother_child", "father_child", "mates"}
    assert read_table(output / "findings.parquet", "findings").num_rows == 0
    metadata = open_parquet(output / "relatives.parquet", "relatives")[0].schema_arrow.metadata
    assert words in metadata[VERDICT_METADATA.encode()].decode()
    assert words in caplog.text
    assert "</svg>" in (output / "relatives.svg").read_text()
    assert not list(output.glob(".*"))


def test_a_column_that_the_sheet_lacks_is_one_line(tmp_path: Path) -> None:
    config = json.dumps({"relatives": {"columns": ["batch"]}})
    done = CliRunner().invoke(command, [*options(tmp_path, "quartet", 2), "--config", config])
    assert isinstance(done.exception, UserError)
    assert "the sample sheet has no column 'batch'" in str(done.exception)
    assert not (tmp_path / "relatives").exists()
