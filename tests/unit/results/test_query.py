"""Queries against the same selection made with numpy, the three formats, and one-line errors."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import REPOSITORY

from epivi.base.errors import UserError
from epivi.cli import main
from epivi.families.transmission.columns import effect_parameters, posterior_columns
from epivi.field.covariate import Covariate
from epivi.loci.store import read_provenance
from epivi.results.query import Region, parse_region, select
from epivi.results.selection import Selection
from epivi.tables.parquet import Provenance, read_table, write_table
from epivi.tables.parts import part_metadata, part_path, read_parts

HYPOTHESES = ("reset", "epigenetic", "epigenetic+cis")
POSTERIOR = Provenance("posterior", 5, "configuration", "pedigree")
N = 300
CONTIGS = ("1", "HLA:A*01", "chr10")


def posterior_part(rng, first, contig):
    columns = {}
    for column in posterior_columns(HYPOTHESES):
        if column.name == "best":
            columns[column.name] = rng.choice(["", *HYPOTHESES], N)
        elif column.name == "kind_set":
            columns[column.name] = rng.choice(["epigenetic|epigenetic+cis", "epigenetic"], N)
        elif pa.types.is_dictionary(column.type):
            columns[column.name] = [{"strand": ".", "contig": contig}.get(column.name, "CG")] * N
        elif pa.types.is_boolean(column.type):
            columns[column.name] = rng.random(N) < 0.2
        else:
            columns[column.name] = rng.integers(1, 40, N) if pa.types.is_integer(column.type) else rng.random(N)
    columns["pos"] = (first + np.arange(N)) * 10
    columns["end"] = columns["pos"] + 2
    columns["slope_mean_reset"] = np.full(N, np.nan)
    return pa.table(columns)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three contigs in three parts that end within them; "1" would be read as a number if it were guessed."""
    folder = tmp_path_factory.mktemp("results") / "demo"
    rng = np.random.default_rng(3)
    pieces = [posterior_part(rng, part * N, contig) for contig in CONTIGS for part in range(2)]
    write_parts(folder / "posterior", pa.concat_tables(pieces), (450, 900, 450))
    return folder


def write_parts(folder, table, sizes):
    """A posterior of so many loci in each part; of no loci, no part."""
    start = 0
    for number, size in enumerate(sizes):
        rows = table.slice(start, size)
        metadata = part_metadata(
            (start, start + len(rows)), table.num_rows, rows["contig"].unique().to_pylist(), "stamp", "weights"
        )
        start += len(rows)
        if len(rows):
            path = part_path(folder, f"{number:04d}")
            write_table(rows, path, posterior_columns(HYPOTHESES), POSTERIOR, row_group_rows=100, metadata=metadata)


@pytest.fixture(scope="module")
def everything(results):
    return read_parts(results / "posterior", "posterior").to_pandas()


def table_of(results, **selection):
    with select(results, Selection(**selection)) as result:
        batches = list(result.batches)
        return pa.Table.from_batches(batches).to_pandas() if batches else None


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["query", *map(str, arguments)])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, captured.err


# ---- regions


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("chr1", Region("chr1", 0, None)),
        ("chr1:5-90", Region("chr1", 5, 90)),
        ("chr1:1,000-2,000,000", Region("chr1", 1000, 2_000_000)),
        ("HLA:A*01", Region("HLA:A*01", 0, None)),
        ("HLA:A*01:7-8", Region("HLA:A*01", 7, 8)),
        ("chr1:5", Region("chr1", 5, 6)),
        ("HLA:A*01:1,005", Region("HLA:A*01", 1005, 1006)),
        ("chr1:5-", Region("chr1", 5, None)),
        ("a:1-2", Region("a:1-2", 0, None)),
    ],
)
def test_region(text, region):
    assert parse_region(text, ["chr1", "HLA:A*01", "a:1-2"]) == region


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr9", "no contig 'chr9' in the results; expected one of chr1, chr2"),
        ("chr9:1-2", "no contig 'chr9'"),
        ("1", r"no contig '1' in the results; did you mean 'chr1'\?"),
        ("Chr2:1-2", r"no contig 'Chr2' in the results; did you mean 'chr2'\?"),
        ("chr1:-5-9", "expected contig, contig:start-end"),
        ("chr1:a-b", "expected contig, contig:start-end"),
        ("chr1:9-9", "the start, 9, must be smaller than the end, 9"),
        ("", "no contig ''"),
    ],
)
def test_bad_region(text, message):
    with pytest.raises(UserError, match=message):
        parse_region(text, ["chr1", "chr2"])


def test_a_long_list_of_contigs_is_cut():
    with pytest.raises(UserError, match=r"c29 and 970 more$"):
        parse_region("x", [f"c{number}" for number in range(1000)])


# ---- selection


def test_the_whole_table_in_genome_order(results, everything):
    found = table_of(results)
    assert list(dict.fromkeys(found.contig)) == ["1", "HLA:A*01", "chr10"]
    assert list(found.columns) == list(everything.columns)
    for name in everything.columns:
        np.testing.assert_array_equal(found[name].to_numpy(), everything[name].to_numpy())


@pytest.mark.parametrize("start", [0, 11, 12, 2500, 5990, 100_000])
def test_a_region_holds_what_overlaps_it(results, everything, start):
    found = table_of(results, region=f"chr10:{start}-{start + 29}", columns=("pos", "lfdr"))
    chosen = (everything.contig == "chr10") & (everything.pos < start + 29) & (everything.end > start)
    if not chosen.any():
        assert found is None
    else:
        assert found.pos.tolist() == everything.pos[chosen].tolist()
        assert found.lfdr.tolist() == everything.lfdr[chosen].tolist()


def test_conditions_see_the_contig_as_text_and_quoted_names(results, everything):
    found = table_of(results, where="contig = '1' AND \"prob_epigenetic+cis\" > 0.9 OR lfdr < 0.01 -- note")
    chosen = ((everything.contig == "1") & (everything["prob_epigenetic+cis"] > 0.9)) | (everything.lfdr < 0.01)
    assert 10 < chosen.sum() < 200
    assert list(zip(found.contig, found.pos, strict=True)) == list(
        zip(everything.contig[chosen], everything.pos[chosen], strict=True)
    )


def test_region_and_alternatives_are_both_required(results, everything):
    found = table_of(results, region="1:0-100", where="lfdr < 0.5 OR lfdr >= 0.5", columns=("contig",))
    assert found.contig.tolist() == ["1"] * 10


def test_limit_and_order_of_columns(results, everything):
    found = table_of(results, columns=("qvalue", "contig"), limit=7)
    assert list(found.columns) == ["qvalue", "contig"]
    assert found.qvalue.tolist() == everything.qvalue[:7].tolist()


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"where": "prob_epigenetc > 0.9"}, 'Referenced column "prob_epigenetc" not found.*prob_epigenetic'),
        ({"where": "lfdr <"}, "syntax error"),
        ({"where": "1 = 1) OR (1 = 1"}, "syntax error"),
        ({"where": "true; DROP TABLE x"}, "statement"),
        ({"where": "lfdr > 'a'"}, "Could not convert string 'a'"),
        ({"where": "sum(lfdr) > 1"}, "aggregates"),
        ({"where": "best::INT > 1"}, "Could not convert string"),
        ({"columns": ("pos", "qvalu")}, r"--columns: no column 'qvalu'; did you mean 'qvalue'\?"),
        ({"region": "chr11"}, "no contig 'chr11'"),
    ],
)
def test_what_cannot_be_selected_is_one_line(results, selection, message):
    with pytest.raises(UserError, match=message) as error, select(results, Selection(**selection)) as result:
        list(result.batches)
    assert "\n" not in str(error.value)


def test_no_results(tmp_path):
    with (
        pytest.raises(UserError, match="posterior: no posterior table here; run the workflow"),
        select(tmp_path, Selection()),
    ):
        pass


def test_another_table_or_damaged_part(tmp_path):
    path = part_path(tmp_path / "posterior", "0000")
    table = posterior_part(np.random.default_rng(1), 0, "c")
    write_table(table, path, posterior_columns(HYPOTHESES), Provenance("truth", 1, "", ""))
    with pytest.raises(UserError, match="holds the table 'truth'; expected 'posterior'"), select(tmp_path, Selection()):
        pass
    write_parts(path.parent, table, (N // 2, N // 2))
    later = part_path(tmp_path / "posterior", "0001")
    later.write_bytes(later.read_bytes()[:-50])
    with pytest.raises(UserError, match="part-0001") as error, select(tmp_path, Selection()) as result:
        list(result.batches)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("removed", "missing"), [("0000", "0 to 450"), ("0001", "450 to 1,350"), ("0002", "1,350 to 1,800")]
)
def test_a_table_with_a_part_missing_is_no_table(results, tmp_path, capsys, removed, missing):
    """Whatever is asked for: rows that are there would pass for all."""
    shutil.copytree(results, tmp_path / "run")
    part_path(tmp_path / "run" / "posterior", removed).unlink()
    code, out, err = run(capsys, "chr10", "--results", tmp_path / "run", "--limit", 1)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"loci {missing} of 1,800 are missing in the table posterior" in err


# ---- other programs


README = (REPOSITORY / "README.md").read_text()
LIKE_NUMBERS = ("1", "01", "2", "10", "X", "HLA*01:02/3")


@pytest.mark.parametrize("contig", LIKE_NUMBERS)
def test_examples_of_the_readme_find_contigs_of_any_name(tmp_path, contig):
    """By pandas, polars and DuckDB: names that look like numbers stay apart and stay text."""
    rng = np.random.default_rng(6)
    table = pa.concat_tables([posterior_part(rng, 0, name) for name in LIKE_NUMBERS])
    write_parts(tmp_path / "results" / "demo" / "posterior", table, (500, 700, 600))
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"chr1": contig, "chr2": "X" if contig != "X" else "2", "chr3": contig}
    for name, replacement in names.items():
        blocks = [
            block.replace(f'"{name}"', f'"{replacement}"').replace(f"'{name}'", f"'{replacement}'") for block in blocks
        ]
    rows = table.to_pandas()
    mine = rows[rows.contig == contig]
    of_programs = [block for block in blocks if "import epivi" not in block]
    called, by_kind, counts = (printed(block, tmp_path) for block in of_programs)
    best = mine[mine.called].nsmallest(5, "qvalue")
    assert [line.split()[:2] for line in called[1:]] == [[contig, str(pos)] for pos in best.pos]
    shares = sorted(mine.kind_set.value_counts(), reverse=True)
    assert [int(cells[1]) for cells in cells_of(by_kind)][-len(shares) :] == shares
    found = {cells[0]: [int(cell) for cell in cells[1:]] for cells in cells_of(counts) if cells[1].isdigit()}
    expected = rows[rows.contig != names["chr2"]].groupby("contig", observed=True).called
    assert found == {name: [len(called), int(called.sum())] for name, called in expected}


def printed(code, folder):
    """Lines that a piece of Python prints when it runs in a folder."""
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def cells_of(lines):
    """Cells of the rows of a drawn table that hold a number in their second."""
    rows = [[cell.strip() for cell in re.split("[│┆]", line)[1:-1]] for line in lines]
    return [cells for cells in rows if len(cells) > 1 and cells[1].isdigit()]


# ---- the command


def test_tsv(results, everything, capsys):
    columns = "contig,pos,lfdr,baseline_mean,flag_khat,slope_mean_reset,best"
    code, out, err = run(capsys, "chr10:100-140", "--results", results, "--columns", columns)
    assert (code, err) == (0, "")
    lines = [line.split("\t") for line in out.splitlines()]
    assert lines[0] == columns.split(",")
    chosen = everything[(everything.contig == "chr10") & everything.pos.between(100, 139)]
    assert len(lines) == len(chosen) + 1 == 5
    for cells, row in zip(lines[1:], chosen.itertuples(), strict=True):
        assert cells[:2] == ["chr10", str(row.pos)]
        assert float(cells[2]) == row.lfdr
        assert np.float32(cells[3]) == row.baseline_mean
        assert cells[4:] == [str(row.flag_khat).lower(), "nan", row.best]


def write_effects(folder, effects, mean):
    """A posterior of one contig with the same effects of all covariates: 1 below and above the mean."""
    rows = posterior_part(np.random.default_rng(1), 0, "1")
    for name in effects:
        for statistic, step in (("mean", 0), ("q05", -1), ("q95", 1)):
            rows = rows.append_column(f"{name}_{statistic}", pa.array(mean + step))
    metadata = part_metadata((0, N), N, ["1"], "stamp", "weights")
    columns = posterior_columns(HYPOTHESES, (), effects)
    write_table(rows, part_path(folder / "posterior", "0000"), columns, POSTERIOR, metadata=metadata)


def test_the_line_of_the_readme_finds_loci_with_an_effect(tmp_path, capsys):
    """Those at which the interval leaves 0 out, on either side."""
    effects = effect_parameters([Covariate("treatment", "drug", "control")])
    mean = np.random.default_rng(2).normal(0, 1, N)
    write_effects(tmp_path, effects, mean)
    (line,) = re.findall(r"^\.venv/bin/epivi query (.*effect_treatment_drug.*)$", README, re.MULTILINE)
    code, out, err = run(capsys, *shlex.split(line), "--results", tmp_path)
    assert (code, err) == (0, "")
    header, *rows = (row.split("\t") for row in out.splitlines())
    assert header[:3] == ["contig", "pos", "effect_treatment_drug_mean"]
    expected = np.flatnonzero(np.abs(mean) > 1)
    assert {-1, 1} == set(np.sign(mean[expected]).astype(int))
    assert [int(row[1]) for row in rows] == (10 * expected).tolist()


def test_columns_with_signs_in_their_names(tmp_path, capsys):
    """Effects are named by the levels of the sheet, whatever these hold: in double quotes they can be asked for."""
    effects = effect_parameters([Covariate("diet", 'high fat, 5" a-day', "low"), Covariate("dose", scale=2.0)])
    write_effects(tmp_path, effects, np.arange(N))
    name = 'effect_diet_high fat, 5"" a-day_q05'
    asked = ["--columns", f'pos, "{name}",effect_dose_mean', "--where", f'"{name}" > 296 AND effect_dose_mean > 298']
    code, out, err = run(capsys, "--results", tmp_path, *asked)
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split("\t") == ["pos", name.replace('""', '"'), "effect_dose_mean"]
    assert [row.split("\t")[1:] for row in rows] == [["298", "299"]]


@pytest.mark.parametrize(("format_name", "header"), [("tsv", "contig\tpos\n"), ("csv", "contig,pos\n"), ("bed", "")])
def test_empty_result_is_the_header_only(results, capsys, format_name, header):
    chosen = ["--columns", "contig,pos"] if format_name != "bed" else []
    code, out, _ = run(capsys, "--results", results, "--where", "pos < 0", "--format", format_name, *chosen)
    assert (code, out) == (0, header)


def test_bed(results, everything, tmp_path, capsys):
    output = tmp_path / "out.bed"
    assert run(capsys, "1", "--results", results, "--limit", 20, "--output", output) == (0, "", "")
    first = everything[everything.contig == "1"].iloc[:20]
    assert {"", "reset"} <= set(first.best)
    expected = [
        f"1\t{row.pos}\t{row.pos + 2}\t{row.best or row.kind_set}\t{round(1000 * (1 - row.lfdr))}\t."
        for row in first.itertuples()
    ]
    assert output.read_text().splitlines() == expected


def test_parquet_keeps_metadata_and_types(results, everything, tmp_path, capsys):
    output = tmp_path / "out.parquet"
    run(capsys, "--results", results, "--where", "lfdr < 0.1", "--columns", "contig,pos,best,lfdr", "--output", output)
    table = read_table(output, "posterior")
    original = pq.read_schema(part_path(results / "posterior", "0000"))
    for name in ("pos", "best", "lfdr"):
        assert table.schema.field(name).equals(original.field(name), check_metadata=True)
    assert table.schema.metadata[b"epivi.where"] == b"lfdr < 0.1"
    assert read_provenance(output) == POSTERIOR
    assert table.column("lfdr").to_pylist() == everything.lfdr[everything.lfdr < 0.1].tolist()
    run(capsys, "--results", results, "--where", "lfdr < -1", "--output", output)
    assert read_table(output, "posterior").num_rows == 0


def test_csv(results, everything, tmp_path, capsys):
    output = tmp_path / "out.csv"
    assert run(capsys, "1:0-500", "--results", results, "--output", output) == (0, "", "")
    found = pandas.read_csv(output, dtype={"contig": str})
    expected = everything[(everything.contig == "1") & (everything.pos < 500)]
    assert list(found.columns) == list(everything.columns)
    assert found.contig.tolist() == ["1"] * 50
    np.testing.assert_array_equal(found.lfdr, expected.lfdr)


@pytest.mark.parametrize(
    "where",
    [
        "contig = (SELECT content FROM read_text('/etc/hostname'))",
        "pos IN (SELECT 1 FROM read_csv('{results}/note.csv'))",
        "pos IN (SELECT pos FROM '{results}/other.parquet')",
        "pos IN (SELECT 1 FROM os)",
    ],
)
def test_a_condition_reads_nothing_but_the_table(results, tmp_path, capsys, where):
    """Neither other files nor variables of this process."""
    shutil.copytree(results, tmp_path / "run")
    (tmp_path / "run" / "note.csv").write_text("a\n1\n")
    shutil.copy(part_path(results / "posterior", "0000"), tmp_path / "run" / "other.parquet")
    condition = where.replace("{results}", str(tmp_path / "run"))
    code, out, err = run(capsys, "--results", tmp_path / "run", "--where", condition)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "disabled by configuration" in err or "does not exist" in err


def test_results_as_configured(results, capsys):
    config = json.dumps({"results": str(results.parent), "cohort": "demo"})
    assert run(capsys, "--config", config, "--limit", 0, "--columns", "pos") == (0, "pos\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "parquet"], "expected --output FILE"),
        (["--format", "bed", "--columns", "pos"], "the columns of BED are fixed"),
        (["--where", "nothing"], "epivi: error: --where 'nothing': Binder Error"),
    ],
)
def test_command_errors(results, capsys, tmp_path, arguments, message):
    code, out, err = run(capsys, "--results", results, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_failed_query_keeps_the_old_output(results, capsys, tmp_path):
    output = tmp_path / "out.tsv"
    output.write_text("old")
    assert run(capsys, "--results", results, "--where", "best::INT > 1", "--output", output)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out.tsv"]
    assert output.read_text() == "old"


def test_a_closed_pipe_is_no_error(results):
    """The reader leaves after one line while far more than a pipe's buffer (64 KiB) is to come."""
    command = [sys.executable, "-m", "epivi", "query", "--results", str(results)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"contig\tpos\t")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
