"""`epivi ingest`: the Parquet file, the quality record, exit statuses, and what it imports."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from bam_cases import read_of, write_bam

from epivi.config.load import load_config
from epivi.loci.counts_file import CountsFile
from epivi.loci.store import read_provenance
from epivi.tables.parquet import read_table

ROWS = (
    ("chr10", 5, 1, 3),
    ("chr2", 11, 2, 0),
    ("chr2", 12, 0, 2),
    ("chr2", 31, 0, 5),
)


def write_input(path: Path) -> Path:
    path.write_text(
        "".join(
            f"{contig}\t{pos}\t{pos}\t{100 * meth / (meth + unmeth)}\t{meth}\t{unmeth}\n"
            for contig, pos, meth, unmeth in ROWS
        )
    )
    return path


def epivi(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "epivi", "ingest", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def arguments(folder: Path, source: Path, *more: str, config: str = "{}") -> list[object]:
    outputs = ["--output", folder / "counts" / "out.parquet", "--qc", folder / "qc" / "out.json"]
    return [source, "--sample", "plant 7", *outputs, "--config", config, *more]


def test_counts_and_record(tmp_path):
    config = json.dumps({"loci": {"coverage": {"max": 4}}})
    done = epivi(*arguments(tmp_path, write_input(tmp_path / "in.cov"), config=config))
    assert done.returncode == 0, done.stderr
    path = tmp_path / "counts" / "out.parquet"
    rows = read_table(path, "counts").to_pylist()
    assert [tuple(row.values()) for row in rows] == [("chr2", 10, "+", "CG", 2, 4), ("chr10", 4, ".", "CG", 1, 4)]

    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [2]
    counts = CountsFile.open(path)
    assert counts.sample == "plant 7"
    assert list(counts.contigs) == ["chr2", "chr10"]
    provenance = read_provenance(path)
    assert (provenance.table, provenance.seed, provenance.pedigree_hash) == ("counts", 0, "")
    assert provenance.config_hash == load_config(config).hash("loci", "qc")

    record = json.loads((tmp_path / "qc" / "out.json").read_text())
    assert (record["sample"], record["format"], record["format_given"]) == ("plant 7", "bismark_cov", False)
    assert (record["rows_read"], record["rows_kept"], record["loci_written"]) == (4, 3, 2)
    assert record["dropped"]["above_max_coverage"] == 1
    assert record["strands_merged"] == 1
    assert "not sorted" not in done.stderr


def ingested(folder: Path, contigs: int, rows: int) -> Path:
    """Counts of so many contigs of so many rows each."""
    source = folder / f"{contigs}.cov"
    with source.open("w") as file:
        for row in range(contigs * rows):
            place, meth, unmeth = row % rows * 50 + 7, row * 7 % 31, row * 11 % 17 + 1
            percent = 100 * meth / (meth + unmeth)
            file.write(f"scaffold_{row // rows}\t{place}\t{place}\t{percent}\t{meth}\t{unmeth}\n")
    folder = folder / str(contigs)
    done = epivi(*arguments(folder, source, config=json.dumps({"loci": {"merge_strands": False}})))
    assert done.returncode == 0, done.stderr
    return folder / "counts" / "out.parquet"


def test_twenty_thousand_contigs_cost_no_more_than_twice_the_bytes_of_one(tmp_path):
    """One row group a contig cost ninety times as many."""
    one, many = ingested(tmp_path, 1, 60_000), ingested(tmp_path, 20_000, 3)
    assert many.stat().st_size < 2 * one.stat().st_size
    counts = CountsFile.open(many)
    assert counts.file.num_row_groups == 4
    assert list(counts.contigs) == [f"scaffold_{number}" for number in range(20_000)]
    reads, read_row_group = [], counts.file.read_row_group
    counts = dataclasses.replace(counts, file=Reading(read_row_group, reads))
    meth = np.concatenate([rows.meth for contig in counts.contigs for rows in counts.rows(contig)])
    assert meth.tolist() == read_table(many, "counts", ["meth"])["meth"].to_pylist()
    assert reads == [0, 1, 2, 3]  # each row group is decoded once, not once a contig


class Reading(NamedTuple):
    """A Parquet file that takes note of the row groups asked for."""

    function: Any
    asked: list[int]

    def read_row_group(self, number: int, **options: Any) -> Any:
        self.asked.append(number)
        return self.function(number, **options)


def test_sample_without_loci_gives_an_empty_table_and_a_warning(tmp_path):
    config = json.dumps({"loci": {"contigs": {"exclude": ["chr*"]}}})
    done = epivi(*arguments(tmp_path, write_input(tmp_path / "in.cov"), config=config))
    assert done.returncode == 0
    assert "WARNING" in done.stderr
    assert "all 4 rows were dropped (contig 4)" in done.stderr
    path = tmp_path / "counts" / "out.parquet"
    assert read_table(path, "counts").num_rows == 0
    assert CountsFile.open(path).sample == "plant 7"


def test_extrapolated_counts_are_a_warning(tmp_path):
    source = tmp_path / "in.bed"
    source.write_text("chr1\t10\t11\t46.2\tTotal\t63\t30\t33\t47.6\n")
    done = epivi(*arguments(tmp_path, source))
    assert done.returncode == 0
    assert "WARNING" in done.stderr
    assert "the counts are extrapolated from a percentage or a probability" in done.stderr
    assert json.loads((tmp_path / "qc" / "out.json").read_text())["is_extrapolated"]


@pytest.mark.parametrize("bad", ["chr1\t5\t5\t50\t1\n", "chr1\t5\t5\t50\t-1\t1\n"])
def test_user_errors_are_one_line_and_leave_nothing(tmp_path, bad):
    source = write_input(tmp_path / "in.cov")
    source.write_text(source.read_text() + bad)
    done = epivi(*arguments(tmp_path, source))
    assert done.returncode == 2
    assert done.stderr.startswith(f"epivi: error: {source}: line 5: ")
    assert len(done.stderr.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != source]


def test_given_format_overrides(tmp_path):
    done = epivi(*arguments(tmp_path, write_input(tmp_path / "in.cov"), "--format", "bedmethyl"))
    assert done.returncode == 2
    assert "line 1: 6 columns (expected 11 or more)" in done.stderr
    done = epivi(*arguments(tmp_path, tmp_path / "in.cov", "--format", "bismark_cov"))
    assert done.returncode == 0
    assert json.loads((tmp_path / "qc" / "out.json").read_text())["format_given"]


def test_a_small_file_needs_no_heavy_library(tmp_path):
    """Dozens of samples are read by one process each: torch, pandas, scipy and duckdb cost more than the reading."""
    write_input(tmp_path / "in.cov")
    code = (
        "import sys\n"
        "from epivi.cli import main\n"
        "try:\n"
        "    main(['ingest', *sys.argv[1:]])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "print(sorted({'torch', 'pandas', 'scipy', 'duckdb', 'numba', 'pyro'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments(tmp_path, tmp_path / "in.cov"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_reads_of_a_bam_file(tmp_path):
    """Two phased reads with a call at one CpG each; the second is of the other haplotype."""
    tags = [("MM", "C+m?,0;"), ("ML", array("B", [250]))]
    reads = [read_of("TTCGT", "5M", 10 * number, name=f"r{number}", tags=[*tags, ("HP", number)]) for number in (1, 2)]
    source = write_bam(tmp_path / "reads.bam", reads)
    done = epivi(*arguments(tmp_path, source, "--haplotype", "2"))
    assert done.returncode == 0, done.stderr
    rows = read_table(tmp_path / "counts" / "out.parquet", "counts").to_pylist()
    assert [tuple(row.values()) for row in rows] == [("chr1", 22, "+", "CG", 1, 1)]
    record = json.loads((tmp_path / "qc" / "out.json").read_text())
    assert (record["format"], record["reads_read"], record["reads_dropped"]) == ("modbam", 2, {"other_haplotype": 1})
    assert (record["calls_read"], record["calls_dropped"], record["phase_sets"]) == (1, {}, 1)
    done = epivi(*arguments(tmp_path, source, "--haplotype", "both"))
    assert done.returncode == 2
    assert done.stderr == "epivi: error: haplotype is 'both' (expected all, unphased, or a whole number >= 1)\n"
