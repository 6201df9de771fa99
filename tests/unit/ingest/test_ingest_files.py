"""Whole files through ingest against a slow parser that reads line by line: public data, and random tables."""

from __future__ import annotations

import gzip
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import DATA

from epivi.ingest.layout import Counts, IngestSettings
from epivi.ingest.qc import QcRecord
from epivi.ingest.read import detect, ingest
from epivi.tables.columns import CONTEXTS, STRANDS

BSSEQ = DATA / "counts" / "bsseq"
EPIALLELER = DATA / "counts" / "epialleleR"
COL0 = DATA / "pedigrees" / "col0_ma"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public test data beside the repository are absent")

Locus = tuple[str, int, str, str, int, int]  # contig, pos0, strand, context, meth, total


def make_settings(**changes) -> IngestSettings:
    defaults = {
        "contexts": ("CG",),
        "modification": "m",
        "merge_strands": True,
        "include": ("*",),
        "exclude": (),
        "min_coverage": 1,
        "max_coverage": 100_000,
    }
    return IngestSettings(**{**defaults, **changes})


def run(path: Path, options: IngestSettings, format_name: str = "auto") -> tuple[list[Locus], QcRecord]:
    loci: list[Locus] = []

    def write(contig: str, counts: Counts) -> None:
        columns = (column.tolist() for column in counts)
        for pos0, strand, context, meth, total in zip(*columns, strict=True):
            loci.append((contig, pos0, STRANDS[strand], CONTEXTS[context], meth, total))

    record = ingest(path, "s", options, write, format_name=format_name, spill_directory=path.parent)
    return loci, record


# ---------------------------------------------------------------------------------------------------- the slow parser


class Row(NamedTuple):
    contig: str
    pos0: int
    strand: str  # "*": both strands of a CpG together
    context: str
    meth: int
    total: int


def read_lines(path: Path) -> list[str]:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode().splitlines()


def slow_rows(path: Path, format_name: str, modification: str) -> tuple[list[Row], int]:
    """All rows of the modification, one by one, and the number of rows in the file; context "?" is not said."""
    lines = [line.split() for line in read_lines(path) if line.strip()]
    rows = []
    header: list[str] = []
    if format_name == "methylome":
        header = lines.pop(0)
    for line in lines:
        if format_name == "bismark_cov":
            meth, unmeth = int(line[4]), int(line[5])
            rows.append(Row(line[0], int(line[1]) - 1, ".", "?", meth, meth + unmeth))
        elif format_name == "cytosine_report":
            meth, unmeth = int(line[3]), int(line[4])
            rows.append(Row(line[0], int(line[1]) - 1, line[2], line[5], meth, meth + unmeth))
        elif format_name == "methylome":
            cell = dict(zip(header, line, strict=True))
            counts = int(cell["counts.methylated"]), int(cell["counts.total"])
            rows.append(Row(cell["seqnames"], int(cell["start"]) - 1, cell["strand"], cell["context"], *counts))
        elif len(line) == 18:
            if line[3] == {"m": "m", "h": "h", "mh": "C"}[modification]:
                strand = "*" if line[5] == "." else line[5]
                rows.append(Row(line[0], int(line[1]), strand, "?", int(line[11]), int(line[9])))
        else:
            # Modified reads are whichever count the percent speaks of; in these files that is the 13th column.
            rows.append(Row(line[0], int(line[1]), "*", "?", int(line[12]), int(line[11]) + int(line[12])))
    return rows, len(lines)


def slow_loci(rows: list[Row], options: IngestSettings) -> list[Locus]:
    sums: dict[tuple[str, int, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        context = options.contexts[0] if row.context == "?" else row.context
        if context not in options.contexts or row.total == 0:
            continue
        pos0, strand = row.pos0, row.strand
        if context == "CG" and options.merge_strands:
            if strand == "-":
                pos0, strand = pos0 - 1, "+"
            strand = "+" if strand == "*" else strand
        key = (row.contig, pos0, strand.replace("*", "."), context)
        sums[key][0] += row.meth
        sums[key][1] += row.total
    if options.merge_strands:
        for key in sorted(key for key in sums if key[2:] == (".", "CG")):
            slow_pair(sums, key)
    kept = [
        (*key, meth, total)
        for key, (meth, total) in sums.items()
        if options.min_coverage <= total <= options.max_coverage
    ]
    return sorted(kept, key=lambda locus: (natural(locus[0]), locus[1], STRANDS.index(locus[2])))


def slow_pair(sums: dict, key: tuple[str, int, str, str]) -> None:
    """Merge a whole run of adjacent bases that starts at `key`, two by two, if its length is even."""
    contig, start, strand, context = key

    def at(pos0: int) -> tuple[str, int, str, str]:
        return (contig, pos0, strand, context)

    if key not in sums or at(start - 1) in sums:
        return
    stop = start
    while at(stop) in sums:
        stop += 1
    if (stop - start) % 2:
        return
    for pos0 in range(start, stop, 2):
        first, second = sums.pop(at(pos0)), sums.pop(at(pos0 + 1))
        sums[contig, pos0, "+", context] = [first[0] + second[0], first[1] + second[1]]


def natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", name)]


def assert_same(path: Path, format_name: str, options: IngestSettings, *, given_format: str = "auto") -> QcRecord:
    rows, n_lines = slow_rows(path, format_name, options.modification)
    loci, record = run(path, options, given_format)
    assert loci == slow_loci(rows, options)
    assert record.format == format_name
    assert record.rows_read == n_lines
    assert record.rows_kept + sum(record.dropped.values()) == n_lines
    assert record.loci_written == len(loci) == record.rows_kept - record.duplicates_merged - record.strands_merged
    assert sum(item["loci"] for item in record.coverage["histogram"]) == len(loci)
    assert sum(record.loci_by_contig.values()) == len(loci)
    return record


# --------------------------------------------------------------------------------------------------------- public data

CASES = {
    "bsseq/Hypo1.first50Bed.txt": ("bedmethyl", 50),
    "bsseq/chr21.chr22.HG002.top1000.bed.gz": ("bedmethyl", 1000),  # 5mC and 5hmC together
    "bsseq/ctr1.chr10.chr11.bed.gz": ("bedmethyl", 1000),
    "bsseq/ctr2.chr10.chr11.bed.gz": ("bedmethyl", 1000),
    "bsseq/ctr3.chr10.chr11.bed.gz": ("bedmethyl", 1000),
    "bsseq/tret1.chr10.chr11.bed.gz": ("bedmethyl", 1000),
    "bsseq/test_data.cytosineReport.gz": ("cytosine_report", 100),
    "bsseq/test_data.fastq_bismark.bismark.cov.gz": ("bismark_cov", 2013),
    "epialleleR/dragen-pe.CX_report.txt.gz": ("cytosine_report", 3832),
    "epialleleR/dragen-se.CX_report.txt.gz": ("cytosine_report", 3243),
}


@needs_data
def test_every_public_counts_file_has_a_case():
    """A file added to the data must be added here; only alignments are read by other tools."""
    found = {f"{path.parent.name}/{path.name}" for path in (DATA / "counts").rglob("*.*") if path.suffix != ".bam"}
    assert found == set(CASES)


@needs_data
@pytest.mark.parametrize("merge_strands", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_public_counts(name, merge_strands):
    format_name, n_rows = CASES[name]
    path = DATA / "counts" / name
    assert detect(path) == format_name
    modification = "mh" if "HG002" in name else "m"
    for limits in ({}, {"min_coverage": 3, "max_coverage": 30}):
        options = make_settings(merge_strands=merge_strands, modification=modification, **limits)
        record = assert_same(path, format_name, options)
        assert record.rows_read == n_rows
        assert record.percent_contradicting == 0
        assert record.is_sorted


@needs_data
@pytest.mark.parametrize("contexts", [("CHG",), ("CHH",), ("CG", "CHG", "CHH")])
@pytest.mark.parametrize("name", [name for name in CASES if "CX_report" in name])
def test_public_reports_in_every_context(name, contexts):
    record = assert_same(DATA / "counts" / name, "cytosine_report", make_settings(contexts=contexts))
    assert set(record.methylation) == set(contexts)
    if len(contexts) == 3:
        assert record.dropped["context"] == 0


@needs_data
def test_hydroxymethylation_rows_are_apart():
    path = BSSEQ / "Hypo1.first50Bed.txt"
    assert_same(path, "bedmethyl", make_settings(modification="h"))
    methyl, record = run(path, make_settings())
    hydroxymethyl, _ = run(path, make_settings(modification="h"))
    assert record.dropped["other_modification"] == 25
    assert [locus[:4] for locus in methyl] == [locus[:4] for locus in hydroxymethyl]
    assert [locus[5] for locus in methyl] == [locus[5] for locus in hydroxymethyl]
    assert methyl[0] == ("chr1", 3000826, "+", "CG", 2, 28)
    assert hydroxymethyl[0] == ("chr1", 3000826, "+", "CG", 0, 28)


@needs_data
def test_two_count_bedmethyl_counts_are_those_of_the_percent():
    loci, record = run(BSSEQ / "tret1.chr10.chr11.bed.gz", make_settings())
    assert record.layout == "two counts, modified in column 13"
    assert loci[0] == ("chr10", 3100021, "+", "CG", 14, 17)  # 82.35 %


@needs_data
@pytest.mark.parametrize("merge_strands", [True, False])
def test_methylomes(merge_strands):
    paths = sorted(COL0.glob("methylome_*.txt"))
    assert len(paths) == 13
    for path in paths:
        record = assert_same(path, "methylome", make_settings(merge_strands=merge_strands))
        assert record.rows_read == 744
        assert record.rows_by_contig.keys() == set("12345")


@needs_data
def test_public_coverage_file_shuffled_and_separated_by_spaces(tmp_path):
    lines = read_lines(BSSEQ / "test_data.fastq_bismark.bismark.cov.gz")
    sorted_loci, _ = run(BSSEQ / "test_data.fastq_bismark.bismark.cov.gz", make_settings())
    random.Random(1).shuffle(lines)
    path = tmp_path / "shuffled.cov"
    path.write_text("".join(line.replace("\t", "   ") + "\n" for line in lines))
    loci, record = run(path, make_settings())
    assert loci == sorted_loci
    assert not record.is_sorted
    assert any("not sorted" in warning for warning in record.warnings)


# ------------------------------------------------------------------------------------------------------- random tables

CONTIGS = ("chr1", "chr2", "chr10", "chrX")
positions = st.integers(5, 30)  # few, so that strands meet and rows repeat
reads = st.integers(0, 8)
row_values = st.tuples(
    st.sampled_from(CONTIGS), positions, st.sampled_from("+-"), st.sampled_from(("CG", "CHG", "CHH")), reads, reads
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(row_values, min_size=1, max_size=80, unique_by=lambda row: (row[0], row[1], row[2])),
    repeats=st.integers(0, 3),
    merge_strands=st.booleans(),
    contexts=st.sampled_from([("CG",), ("CHH",), ("CG", "CHG", "CHH")]),
    limits=st.tuples(st.integers(1, 4), st.integers(4, 20)),
    compress=st.booleans(),
    separator=st.sampled_from(["\t", " ", "   "]),
)
def test_random_cytosine_reports(tmp_path, rows, repeats, merge_strands, contexts, limits, compress, separator):
    # A base has one context, whatever row names it.
    context_of = {(row[0], row[1] - (row[2] == "-")): row[3] for row in rows}
    rows = [(*row[:3], context_of[row[0], row[1] - (row[2] == "-")], *row[4:]) for row in rows]
    rows = rows + rows[:repeats]
    text = "".join(
        separator.join(map(str, (contig, pos, strand, meth, unmeth, context, "CNN"))) + "\n"
        for contig, pos, strand, context, meth, unmeth in rows
    )
    path = tmp_path / "report.txt"
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    options = make_settings(
        merge_strands=merge_strands, contexts=contexts, min_coverage=limits[0], max_coverage=limits[1]
    )
    assert_same(path, "cytosine_report", options)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.sampled_from(CONTIGS), positions, reads, reads), min_size=1, max_size=80),
    merge_strands=st.booleans(),
)
def test_random_coverage_files(tmp_path, rows, merge_strands):
    text = "".join(
        f"{contig}\t{pos}\t{pos}\t{100 * meth / max(1, meth + unmeth)}\t{meth}\t{unmeth}\n"
        for contig, pos, meth, unmeth in rows
    )
    path = tmp_path / "random.cov"
    path.write_text(text)
    assert_same(path, "bismark_cov", make_settings(merge_strands=merge_strands))
