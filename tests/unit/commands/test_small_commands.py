"""What single commands refuse before they read much, and `epivi compile`: one line and status 2."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from inference_cases import make_pedigree, make_sheet

from epivi.base.errors import UserError
from epivi.cli import main
from epivi.commands import diagnose
from epivi.commands.shard import read_comparison
from epivi.commands.simulated_cohort import _unsampled
from epivi.discovery.columns import DISCOVERY_TABLES
from epivi.discovery.replicates import CANNOT_TELL_METADATA
from epivi.families.transmission.cohort import build_cohort
from epivi.families.transmission.hypotheses import parse_hypotheses
from epivi.simulate.templates import template_pedigree
from epivi.tables.parquet import Provenance, write_table
from epivi.tables.parts import MADE_FROM, STAMP, Part

OTHER_FAMILY = json.dumps({"model": {"family": "epimutation"}})
THIS_FAMILY = json.dumps({"model": {"family": "transmission"}})


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main([*map(str, arguments)])
    return int(leaving.value.code or 0)


def options(folder: Path, *names: str) -> list[object]:
    return [part for name in names for part in (f"--{name}", folder / name)]


@pytest.mark.parametrize(
    ("command", "config", "names", "words"),
    [
        (
            "states",
            THIS_FAMILY,
            ("evidence", "loci", "fit", "compare", "samples", "pedigree", "states", "branches"),
            "model.family is transmission, which has no discrete states: expected epimutation",
        ),
        (
            "diagnose",
            OTHER_FAMILY,
            ("loci", "fit", "samples", "pedigree", "output"),
            "model.family is epimutation: expected transmission, the only family of this command",
        ),
    ],
)
def test_a_command_of_another_family_is_refused(
    command: str, config: str, names: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, *options(tmp_path, *names), "--config", config) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epivi: error:")]
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_quality_of_a_cohort_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("loci", "samples", "pedigree", "output")
    assert run("quality", *options(tmp_path, *names), "--config", THIS_FAMILY) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_a_summary_of_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("summary", "--results", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'manifest.json'}" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "bed", "--columns", "pos"), "--columns: the columns of BED are fixed"),
        (("--table", "states"), "no states table here"),
        ((), "no posterior table here"),
    ],
)
def test_a_query_of_what_is_not_there_is_one_line(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("query", "chr1", "--results", tmp_path, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_cavi_is_left_out_where_reads_have_errors(caplog: pytest.LogCaptureFixture) -> None:
    cohort = build_cohort(make_sheet(("a", "b")), make_pedigree(("a",), ("b",)), (), parse_hypotheses({"reset": {}}))
    asked = ["cavi", "laplace"]
    errors = cohort._replace(false_methylated=np.full(len(cohort.false_methylated), 0.01))
    exact = cohort._replace(
        false_methylated=0 * cohort.false_methylated, false_unmethylated=0 * cohort.false_unmethylated
    )
    assert diagnose._usable_methods(asked, exact) == ("cavi", "laplace")
    with caplog.at_level(logging.WARNING):
        assert diagnose._usable_methods(asked, errors) == ("laplace",)
    assert "cavi left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "unsampled"), [("0.34", 2), ("3", 3), ("F1_child,F2_mother", ("F1_child", "F2_mother"))]
)
def test_who_is_not_sampled_is_a_number_or_names(text: str, unsampled: int | tuple[str, ...]) -> None:
    found = _unsampled(text, template_pedigree("trio", 2), 1)
    assert len(found) == unsampled if isinstance(unsampled, int) else found == unsampled
    with pytest.raises(UserError, match="did you mean 'F1_child'"):
        _unsampled("F1_chld", template_pedigree("trio", 2), 1)


def test_the_kernel_is_compiled_ahead(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert run("compile", "--family", "epimutation") == 0
    assert "evidence kernel ready after" in caplog.text


KNOWN = {
    "weights": {"hypothesis": ["reset", "mendelian"], "weight": [0.25, 0.75], "merged": ["reset", "mendelian"]},
    "qvalue": {"lfdr": [0.1, 0.9], "qvalue": [0.1, 0.5]},
    "weight_draws": {"hypothesis": ["reset", "mendelian"] * 2, "tilted": [0.2, 0.8, 0.4, 0.6]},
}


def compared(folder: Path, made_from: str, stamp: str, stamp_of_steps: str) -> None:
    """The tables of a comparison; what no test here looks at is 1."""
    for name, known in KNOWN.items():
        size = len(next(iter(known.values())))
        columns = DISCOVERY_TABLES[name]
        rows = {column.name: known.get(column.name) or pa.array([1] * size).cast(column.type) for column in columns}
        metadata = {
            STAMP: stamp_of_steps if name == "qvalue" else stamp,
            MADE_FROM: made_from,
            CANNOT_TELL_METADATA: "",
        }
        provenance = Provenance(name, 1, "configuration", "pedigree")
        write_table(pa.table(rows), folder / f"{name}.parquet", columns, provenance, metadata=metadata)


def test_a_comparison_is_read_with_the_evidence_that_it_was_made_from(tmp_path: Path) -> None:
    """Of other evidence, other hypotheses or another comparison's steps it is refused: nothing is mixed."""
    part = Part(tmp_path / "part-0000.parquet", 0, 9, 9, ("chr1",), "evidence", "")
    names = ["reset", "mendelian"]
    compared(tmp_path, "evidence", "comparison", "comparison")
    found = read_comparison(tmp_path, names, part)
    assert found.weight.tolist() == [0.25, 0.75]
    assert found.draws.tolist() == [[0.2, 0.8], [0.4, 0.6]]
    assert found.qvalues.qvalue.tolist() == [0.1, 0.5]
    assert (found.stamp, found.cannot_tell) == ("comparison", "")
    with pytest.raises(UserError, match="compares other hypotheses than mendelian, reset"):
        read_comparison(tmp_path, names[::-1], part)
    compared(tmp_path, "other evidence", "comparison", "comparison")
    with pytest.raises(UserError, match="was made from other evidence than"):
        read_comparison(tmp_path, names, part)
    compared(tmp_path, "evidence", "comparison", "another")
    with pytest.raises(UserError, match=r"qvalue\.parquet: is of another comparison"):
        read_comparison(tmp_path, names, part)
