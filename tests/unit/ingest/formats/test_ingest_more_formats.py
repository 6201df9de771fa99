"""pb-CpG-tools, MethylDackel and allc files: their rules, their bad rows, and random tables against a slow parser."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ingest_errors import bad_line
from test_ingest_files import BSSEQ, EPIALLELER, Row, make_settings, needs_data, read_lines, run, slow_loci

from epivi.base.errors import UserError
from epivi.ingest import text as text_module
from epivi.ingest.layout import IngestSettings
from epivi.ingest.qc import QcRecord
from epivi.ingest.read import detect

PB_HEADER = (
    "##pb-cpg-tools-version=3.0.0\n##pileup-mode={}\n##min-coverage=4\n"
    "#chrom\tbegin\tend\tmod_score\ttype\tcov\tcount\tunmod_count\tmore\n"
)
TRACK = 'track type="bedGraph" description="sample {} methylation levels"\n'
MERGED_TRACK = 'track type="bedGraph" description="merged Methylation metrics"\n'
ALL_CONTEXTS = ("CG", "CHG", "CHH")


def table(*rows: str) -> str:
    """Rows as text; fields are written with spaces here and tabs there."""
    return "".join("\t".join(row.split()) + "\n" for row in rows)


def ingest_text(tmp_path: Path, text: str, *, format_name: str = "auto", **changes) -> tuple[list, QcRecord]:
    path = tmp_path / "input"
    path.write_text(text)
    return run(path, make_settings(**changes), format_name)


# -------------------------------------------------------------------------------------------------------- pb-CpG-tools


def test_counts_of_pb_count_mode(tmp_path):
    text = PB_HEADER.format("count") + table(
        "chr1 10 11 75.0 Total 4 3 1 0.981 0.043", "chr1 12 13 0.0 Total 5 0 5 . 0.101"
    )
    loci, record = ingest_text(tmp_path, text)
    assert loci == [("chr1", 10, "+", "CG", 3, 4), ("chr1", 12, "+", "CG", 0, 5)]
    assert (record.format, record.layout, record.is_extrapolated) == ("pb_cpg", "pileup mode count", False)
    assert (record.percent_checked, record.warnings) == (2, ())
    unmerged, _ = ingest_text(tmp_path, text, merge_strands=False)
    assert [locus[1:3] for locus in unmerged] == [(10, "."), (12, ".")]


def test_counts_of_pb_model_mode_are_said_to_be_extrapolated(tmp_path):
    # 46.2 % of 63 reads are 29.1, rounded up towards one half of them.
    loci, record = ingest_text(tmp_path, table("chr1 10 11 46.2 hap1 63 30 33 47.6", "chr1 15 16 4.1 hap1 31 1 30 3.2"))
    assert loci == [("chr1", 10, "+", "CG", 30, 63), ("chr1", 15, "+", "CG", 1, 31)]
    assert (record.format, record.layout, record.is_extrapolated) == ("pb_cpg", "pileup mode model", True)
    assert record.warnings == (
        "the counts are extrapolated from a percentage or a probability, reads were not counted",
    )
    # The score may be far from the counts; the last column is what must agree with them.
    assert (record.percent_checked, record.percent_contradicting) == (2, 0)
    with pytest.raises(UserError, match="contradicts the counts in 1 of 1"):
        ingest_text(tmp_path, table("chr1 10 11 46.2 Total 63 30 33 46.2"))


def test_adjacent_cpgs_of_pb_are_never_paired(tmp_path):
    rows = ("chr1 10 11 75.0 Total 4 3 1 75.0", "chr1 11 12 25.0 Total 4 1 3 25.0")
    assert [locus[1:3] for locus in ingest_text(tmp_path, table(*rows))[0]] == [(10, "+"), (11, "+")]


def test_pb_rows_are_5mc_of_cpgs(tmp_path):
    text = table("chr1 10 11 75.0 Total 4 3 1 75.0")
    assert ingest_text(tmp_path, text, modification="h")[1].dropped["other_modification"] == 1
    assert ingest_text(tmp_path, text, contexts=("CHH",))[1].dropped["context"] == 1
    assert len(ingest_text(tmp_path, text, contexts=ALL_CONTEXTS)[0]) == 1


def test_pb_haplotypes_of_two_blocks_must_be_one(tmp_path, monkeypatch):
    halves = [
        table(*(f"chr1 {start} {start + 1} 75.0 {label} 4 3 1 75.0" for start in range(100, 120)))
        for label in ("hap2", "hap1")
    ]
    monkeypatch.setattr(text_module, "BLOCK_BYTES", len(halves[0]))
    assert len(ingest_text(tmp_path, halves[0])[0]) == 20
    error = bad_line(tmp_path, "".join(halves))
    assert error == "line 21: column 5 (haplotype) is 'hap1' (expected hap2, as in the first row)"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("chr1 -1 0 75.0 Total 4 3 1 75.0", "column 2 (start) is '-1' (expected a 0-based position)"),
        ("chr1 x 11 75.0 Total 4 3 1 75.0", "column 2 (start) is 'x' (expected a whole number"),
        ("chr1 30 32 75.0 Total 4 3 1 75.0", "column 3 (end) is '32' (expected one base after the start)"),
        ("chr1 30 30.5 75.0 Total 4 3 1 75.0", "column 3 (end) is '30.5' (expected a whole number"),
        ("chr1 30 31 high Total 4 3 1 75.0", "column 4 (score) is 'high' (expected a number)"),
        ("chr1 30 31 100.1 Total 4 3 1 75.0", "column 4 (score) is '100.1' (expected a percentage from 0 to 100)"),
        ("chr1 30 31 75.0 hap3 4 3 1 75.0", "column 5 (haplotype) is 'hap3' (expected Total, hap1 or hap2)"),
        ("chr1 30 31 75.0 hap1 4 3 1 75.0", "column 5 (haplotype) is 'hap1' (expected Total, as in the first row)"),
        ("chr1 30 31 75.0 Total 5 3 1 75.0", "column 6 (coverage) is '5' (expected the sum of the modified and the"),
        ("chr1 30 31 75.0 Total four 3 1 75.0", "column 6 (coverage) is 'four' (expected a whole number"),
        ("chr1 30 31 75.0 Total 4 -3 1 75.0", "column 7 (modified) is '-3' (expected a count from 0 to"),
        ("chr1 30 31 75.0 Total 4 3 1.0 75.0", "column 8 (unmodified) is '1.0' (expected a whole number"),
        (
            "chr1 30 31 75.0 Total 4 3 1 -1",
            "column 9 (discretized score) is '-1' (expected a percentage from 0 to 100)",
        ),
        ("chr1 30 31 75.0 Total 4 3 1 .", "column 9 (discretized score) is '.' (expected a number)"),
        ("chr1 30 31 75.0 Total 4 3 1", "8 columns (expected 9)"),
        ("chr1 30 31 75.0 Total 4 3 1 0.9 0.1", "10 columns (expected 9)"),
    ],
)
@pytest.mark.parametrize("format_name", ["auto", "pb_cpg"])
def test_bad_rows_of_pb(tmp_path, row, expected, format_name):
    text = PB_HEADER.format("model") + table("chr1 10 11 75.0 Total 4 3 1 75.0", "chr1 20 21 0.0 Total 4 0 4 0.0")
    assert bad_line(tmp_path, text + table(row), format_name).startswith(f"line 7: {expected}")


# -------------------------------------------------------------------------------------------------------- MethylDackel


def test_single_cytosines_of_methyldackel_pair_like_bismark_coverage(tmp_path):
    rows = ("1 25114 25115 66 2 1", "1 25115 25116 100 3 0", "1 29336 29337 50 1 1")
    loci, record = ingest_text(tmp_path, TRACK.format("CpG") + table(*rows))
    assert loci == [("1", 25114, "+", "CG", 5, 6), ("1", 29336, ".", "CG", 1, 2)]
    assert (record.format, record.strands_merged, record.strand_unknown) == ("methyldackel", 1, 1)
    assert (record.percent_checked, record.percent_contradicting) == (3, 0)
    unmerged, _ = ingest_text(tmp_path, TRACK.format("CpG") + table(*rows), merge_strands=False)
    assert [locus[1:3] for locus in unmerged] == [(25114, "."), (25115, "."), (29336, ".")]


@pytest.mark.parametrize("words", ["CpG merged", "merged CpG"])  # as the tool writes it, and as its README shows it
def test_merged_cpgs_of_methyldackel(tmp_path, words):
    loci, _ = ingest_text(tmp_path, TRACK.format(words) + table("1 10 12 83 5 1", "1 12 14 0 0 2"))
    assert loci == [("1", 10, "+", "CG", 5, 6), ("1", 12, "+", "CG", 0, 2)]


def test_the_track_line_says_the_context(tmp_path):
    for context in ("CHG", "CHH"):
        text = TRACK.format(context) + table("1 10 11 50 1 1")
        loci, record = ingest_text(tmp_path, text, contexts=ALL_CONTEXTS)
        assert loci == [("1", 10, ".", context, 1, 2)]
        assert record.layout == f"strand unknown, single cytosines {context}"
        assert ingest_text(tmp_path, text)[1].dropped["context"] == 1


def test_merged_sites_of_methyldackel_merge_context_say_their_context(tmp_path):
    text = MERGED_TRACK + table("1 10 12 83 5 1", "1 15 18 50 1 1", "1 20 21 0 0 3")
    loci, _ = ingest_text(tmp_path, text, contexts=ALL_CONTEXTS)
    assert loci == [("1", 10, "+", "CG", 5, 6), ("1", 15, ".", "CHG", 1, 2), ("1", 20, ".", "CHH", 0, 3)]


def test_another_track_line_leaves_the_context_to_the_configuration(tmp_path):
    text = "track type=bedGraph name=mine\n" + table("1 10 11 50 1 1")
    assert ingest_text(tmp_path, text, contexts=("CHH",))[0] == [("1", 10, ".", "CHH", 1, 2)]
    with pytest.raises(UserError, match=r"MethylDackel rows do not say their context.*CG, CHG, CHH.*single context"):
        ingest_text(tmp_path, text, contexts=ALL_CONTEXTS)


def test_methyldackel_without_its_track_line_must_be_named(tmp_path):
    """Line by line such rows are whole CpGs of Bismark, so the positions would be one base off."""
    rows = table("1 10 11 50 1 1", "1 20 21 100 3 0")
    assert detect_text(tmp_path, rows) == "bismark_cov"
    loci, record = ingest_text(tmp_path, rows, format_name="methyldackel")
    assert [locus[1] for locus in loci] == [10, 20]
    assert record.format_given
    assert "methyldackel is the zero-based format" in bad_line(tmp_path, table("1 10 11 50 1 1", "1 11 12 100 3 0"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("1 -1 0 50 1 1", "column 2 (start) is '-1' (expected a 0-based position)"),
        ("1 x 31 50 1 1", "column 2 (start) is 'x' (expected a whole number"),
        ("1 30 30 50 1 1", "column 3 (end) is '30' (expected the start plus 1 or 2)"),
        ("1 30 33 50 1 1", "column 3 (end) is '33' (expected the start plus 1 or 2)"),
        ("1 2147483647 -2147483647 50 1 1", "column 3 (end) is '-2147483647' (expected the start plus 1 or 2)"),
        ("1 30 31 half 1 1", "column 4 (percent) is 'half' (expected a number)"),
        ("1 30 31 -2147483648 0 0", "column 4 (percent) is '-2147483648' (expected a percentage from 0 to 100)"),
        ("1 30 31 50 1.5 1", "column 5 (methylated) is '1.5' (expected a whole number"),
        ("1 30 31 50 1 -1", "column 6 (unmethylated) is '-1' (expected a count from 0 to"),
        ("1 30 31 50", "4 columns (expected 6)"),
    ],
)
def test_bad_rows_of_methyldackel(tmp_path, row, expected):
    text = TRACK.format("CpG") + table("1 10 11 50 1 1", "1 20 21 50 1 1")
    assert bad_line(tmp_path, text + table(row)).startswith(f"line 4: {expected}")


@pytest.mark.parametrize(("context", "widths"), [("CHG", "1 or 3"), ("CHH", "1")])
def test_widths_that_the_stated_context_excludes(tmp_path, context, widths):
    text = TRACK.format(context) + table("1 10 11 50 1 1", "1 20 22 50 1 1")
    assert bad_line(tmp_path, text) == f"line 3: column 3 (end) is '22' (expected the start plus {widths})"


def test_other_outputs_of_methyldackel_have_too_few_columns(tmp_path):
    fractions = 'track type="bedGraph" description="sample CpG methylation fractions"\n' + table("1 10 11 0.5")
    assert bad_line(tmp_path, fractions, "methyldackel") == "line 2: 4 columns (expected 6)"
    assert bad_line(tmp_path, fractions).startswith("this is a bedGraph, one value a row: a level without its reads")


# ---------------------------------------------------------------------------------------------------------------- allc

ALLC_ROWS = ("1 11 + CGT 18 21 1", "1 12 - CGA 2 4 1", "1 14 + CAG 0 3 0", "1 16 - CTT 1 9 0", "1 17 + CNN 0 2 0")
ALLC_LOCI = [("1", 10, "+", "CG", 20, 25), ("1", 13, "+", "CHG", 0, 3), ("1", 15, "-", "CHH", 1, 9)]


def test_allc_says_strand_and_context(tmp_path):
    loci, record = ingest_text(tmp_path, table(*ALLC_ROWS), contexts=ALL_CONTEXTS)
    assert loci == ALLC_LOCI
    assert (record.format, record.strands_merged, record.dropped["context"]) == ("allc", 1, 1)
    unmerged, _ = ingest_text(tmp_path, table(*ALLC_ROWS), merge_strands=False)
    assert unmerged == [("1", 10, "+", "CG", 18, 21), ("1", 11, "-", "CG", 2, 4)]


@pytest.mark.parametrize(
    ("bases", "context"),
    [
        ("CG", "CG"),
        ("CGN", "CG"),
        ("CGTAC", "CG"),
        ("CHG", "CHG"),
        ("CCG", "CHG"),
        ("CYG", "CHG"),
        ("CHH", "CHH"),
        ("CWMG", "CHH"),
        *((bases, ".") for bases in ("C", "CN", "CA", "CNG", "CAN", "CRG", "CTR")),
    ],
)
def test_contexts_from_the_bases_of_allc(tmp_path, bases, context):
    _, record = ingest_text(tmp_path, table(f"1 11 + {bases} 1 2 1"), contexts=ALL_CONTEXTS)
    assert record.dropped["context"] == (context == ".")
    assert list(record.methylation) == ([] if context == "." else [context])


def test_allc_with_variant_columns_and_with_a_header(tmp_path):
    with_variants = table(*(f"{row} 3,2,3 0,1,0" for row in ALLC_ROWS))
    assert ingest_text(tmp_path, with_variants, contexts=ALL_CONTEXTS)[0] == ALLC_LOCI
    header = table("chrom pos strand mc_class mc_count total methylated")
    loci, record = ingest_text(tmp_path, header + table(*ALLC_ROWS), contexts=ALL_CONTEXTS)
    assert (loci, record.rows_read, record.format) == (ALLC_LOCI, 5, "allc")
    assert bad_line(tmp_path, header + table("1 x + CGT 1 2 1", *ALLC_ROWS)).startswith("line 2: column 2 (position)")
    assert bad_line(tmp_path, header) == "the file has no rows"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("1 0 + CGT 1 2 1", "column 2 (position) is '0' (expected a 1-based position)"),
        ("1 1e3 + CGT 1 2 1", "column 2 (position) is '1e3' (expected a whole number"),
        ("1 30 . CGT 1 2 1", "column 3 (strand) is '.' (expected + or -)"),
        ("1 1 - CGT 1 2 1", "column 3 (strand) is '-' (expected a plus-strand base"),
        (
            "1 30 + GCG 1 2 1",
            "column 4 (bases) is 'GCG' (expected CG, CHG, CHH, or bases from the cytosine on)",
        ),
        ("1 30 + C-G 1 2 1", "column 4 (bases) is 'C-G' (expected CG"),
        ("1 30 + CGT 3 2 1", "column 5 (methylated) is '3' (expected at most the coverage)"),
        ("1 30 + CGT -1 2 1", "column 5 (methylated) is '-1' (expected a count from 0 to"),
        ("1 30 + CGT 1 2.0 1", "column 6 (coverage) is '2.0' (expected a whole number"),
        ("1 30 + CGT 1 2000000000 1", "column 6 (coverage) is '2000000000' (expected a count from 0 to"),
        ("1 30 + CGT 1 2 2", "column 7 (call) is '2' (expected 0 or 1)"),
        ("1 30 + CGT 1 2 NA", "column 7 (call) is 'NA' (expected a whole number"),
        ("1 30 + CGT 1 2", "6 columns (expected 7)"),
    ],
)
@pytest.mark.parametrize("format_name", ["auto", "allc"])
def test_bad_rows_of_allc(tmp_path, row, expected, format_name):
    text = table("1 11 + CGT 1 2 1", "1 12 - CGA 1 2 1", "1 20 + CGA 1 2 1")
    assert bad_line(tmp_path, text + table(row), format_name).startswith(f"line 4: {expected}")


# --------------------------------------------------------------------------------------------------------- recognition


def detect_text(tmp_path: Path, text: str) -> str:
    path = tmp_path / "input"
    path.write_text(text)
    return detect(path)


@pytest.mark.parametrize("separator", ["\t", "  "])
@pytest.mark.parametrize(
    ("header", "row", "format_name"),
    [
        ("", "chr1 11 11 50 1 1", "bismark_cov"),
        ("", "chr1 11 12 50 1 1", "bismark_cov"),
        ("", "chr1 11 + 1 1 CG CGA", "cytosine_report"),
        ("", "chr1 11 + 1 1 CG", "cytosine_report"),
        ("", "chr1 10 11 m 4 + 10 11 255,0,0 4 25.00 1 3 0 0 0 0 0", "bedmethyl"),
        (TRACK.format("CpG"), "chr1 10 11 . 0 + 10 11 0,0,0 4 50", "bedmethyl"),
        (TRACK.format("CpG"), "chr1 10 11 50 1 1", "methyldackel"),
        (TRACK.format("CpG merged"), "chr1 10 12 50 1 1", "methyldackel"),
        ("", "chr1 10 11 50.0 Total 2 1 1 50.0", "pb_cpg"),
        ("", "chr1 10 11 50.0 hap2 2 1 1 0.9 .", "pb_cpg"),
        ("", "chr1 11 + CGT 1 2 1", "allc"),
        ("", "chr1 11 - CCG 1 2 1 3,2,3 0,1,0", "allc"),
    ],
)
def test_each_form_is_recognised_and_no_other(tmp_path, header, row, format_name, separator):
    assert detect_text(tmp_path, header + separator.join(row.split()) + "\n") == format_name


# --------------------------------------------------------------------------------------------------------- public data


@needs_data
def test_a_cytosine_report_rewritten_as_allc(tmp_path):
    source = EPIALLELER / "dragen-pe.CX_report.txt.gz"
    rows = [line.split() for line in read_lines(source)]
    text = table(*(f"{c} {pos} {s} {bases} {m} {int(m) + int(u)} 1" for c, pos, s, m, u, _, bases in rows))
    for contexts in (("CG",), ALL_CONTEXTS):
        expected, report = run(source, make_settings(contexts=contexts))
        loci, record = ingest_text(tmp_path, text, contexts=contexts)
        assert (loci, record.format) == (expected, "allc")
        assert record.dropped == report.dropped


@needs_data
def test_coverage_rewritten_as_methyldackel(tmp_path):
    source = BSSEQ / "test_data.fastq_bismark.bismark.cov.gz"
    rows = [line.split() for line in read_lines(source)]
    text = TRACK.format("CpG") + table(
        *(f"{contig} {int(pos) - 1} {pos} {int(float(percent))} {m} {u}" for contig, pos, _, percent, m, u in rows)
    )
    loci, record = ingest_text(tmp_path, text)
    assert (loci, record.format) == (run(source, make_settings())[0], "methyldackel")
    assert (record.rows_read, record.percent_contradicting) == (2013, 0)


@needs_data
def test_bedmethyl_of_both_strands_rewritten_as_pb_counts(tmp_path):
    source = BSSEQ / "chr21.chr22.HG002.top1000.bed.gz"
    rows = [line.split() for line in read_lines(source)]
    text = table(
        *(
            f"{row[0]} {row[1]} {row[2]} {row[10]} Total {row[9]} {row[11]} {int(row[9]) - int(row[11])} . ."
            for row in rows
        )
    )
    loci, record = ingest_text(tmp_path, text)
    assert (loci, record.format) == (run(source, make_settings(modification="mh"))[0], "pb_cpg")
    assert (record.rows_read, record.percent_contradicting) == (1000, 0)


# ----------------------------------------------------------------------------------------------------- the slow parser


def slow_pb(lines: list[str]) -> list[Row]:
    cells = [line.split() for line in lines if not line.startswith("#")]
    return [Row(cell[0], int(cell[1]), "*", "CG", int(cell[6]), int(cell[6]) + int(cell[7])) for cell in cells]


def slow_methyldackel(lines: list[str]) -> list[Row]:
    named = re.search("CpG|CHG|CHH", lines[0])
    single = named[0].replace("CpG", "CG") if named else "CHH"
    rows = []
    for line in lines[1:]:
        contig, start, end, _, meth, unmeth = line.split()
        bases = int(end) - int(start)
        context = {1: single, 2: "CG", 3: "CHG"}[bases]
        strand = "." if bases == 1 else "*"
        rows.append(Row(contig, int(start), strand, context, int(meth), int(meth) + int(unmeth)))
    return rows


def slow_allc(lines: list[str]) -> list[Row]:
    rows = []
    for line in lines:
        contig, position, strand, bases, meth, total = line.split()[:6]
        if position == "pos":
            continue
        context = "?other"
        for name, pattern in (("CG", "CG"), ("CHG", "C[ACT]G"), ("CHH", "C[ACT][ACT]")):
            if re.match(pattern, bases):
                context = name
        rows.append(Row(contig, int(position) - 1, strand, context, int(meth), int(total)))
    return rows


SLOW = {"pb_cpg": slow_pb, "methyldackel": slow_methyldackel, "allc": slow_allc}


# ------------------------------------------------------------------------------------------------------- random tables

contigs = st.sampled_from(("chr1", "chr2", "chr10", "chrX"))
positions = st.integers(5, 30)  # few, so that strands meet and rows repeat
reads = st.integers(0, 8)
sites = st.lists(st.tuples(contigs, positions, reads, reads), min_size=1, max_size=40)


@st.composite
def pb_tables(draw) -> str:
    is_model, label = draw(st.booleans()), draw(st.sampled_from(("Total", "hap1", "hap2")))
    lines = []
    for contig, pos0, meth, unmeth in draw(sites):
        percent = round(100 * meth / max(1, meth + unmeth), 1)
        score = draw(st.floats(0, 100)) if is_model else percent
        tail = f"{percent}" if is_model else "0.9\t."
        lines.append(f"{contig}\t{pos0}\t{pos0 + 1}\t{score:.1f}\t{label}\t{meth + unmeth}\t{meth}\t{unmeth}\t{tail}\n")
    header = PB_HEADER.format("model" if is_model else "count") if draw(st.booleans()) else ""
    return header + "".join(lines)


@st.composite
def methyldackel_tables(draw) -> str:
    words = draw(st.sampled_from(("CpG", "CHG", "CHH", "CpG merged", "CHG merged", None)))
    # In a file of several contexts a base has one of them.
    width = {"CpG merged": (2,), "CHG merged": (3,), None: (1, 2, 3)}.get(words, (1,))
    lines = [MERGED_TRACK if words is None else TRACK.format(words)]
    for contig, start, meth, unmeth in draw(sites):
        end = start + width[start % len(width)]
        lines.append(f"{contig}\t{start}\t{end}\t{100 * meth // max(1, meth + unmeth)}\t{meth}\t{unmeth}\n")
    return "".join(lines)


bases = st.sampled_from(("CGA", "CGN", "CGTT", "CAG", "CTGA", "CCA", "CTTG", "CNN", "CAN", "CN"))


@st.composite
def allc_tables(draw) -> str:
    rows = draw(sites)
    strands = draw(st.lists(st.sampled_from("+-"), min_size=len(rows), max_size=len(rows)))
    # A base has one context, and both strands of a CpG are a CpG.
    at = draw(st.lists(bases, min_size=27, max_size=27))
    has_more = draw(st.booleans())
    lines = ["chrom\tpos\tstrand\tmc_class\tmc_count\ttotal\tmethylated" + has_more * "\ta\tb" + "\n"] * draw(
        st.integers(0, 1)
    )
    for (contig, pos0, meth, unmeth), strand in zip(rows, strands, strict=True):
        base = at[pos0 - (strand == "-") - 4]
        tail = "\t3,2\t0,1" if has_more else ""
        lines.append(f"{contig}\t{pos0 + 1}\t{strand}\t{base}\t{meth}\t{meth + unmeth}\t{int(meth > 2)}{tail}\n")
    return "".join(lines)


TABLES: dict[str, Callable[[], st.SearchStrategy[str]]] = {
    "pb_cpg": pb_tables,
    "methyldackel": methyldackel_tables,
    "allc": allc_tables,
}
options_of_ingest = st.builds(
    lambda contexts, merge_strands, low, high: make_settings(
        contexts=contexts, merge_strands=merge_strands, min_coverage=low, max_coverage=high
    ),
    st.sampled_from([("CG",), ("CHH",), ALL_CONTEXTS]),
    st.booleans(),
    st.integers(1, 4),
    st.integers(4, 20),
)


def write(path: Path, text: str, compression: str) -> None:
    import pysam

    if compression == "bgzip":
        with pysam.BGZFile(str(path), "wb") as file:
            file.write(text.encode())
    else:
        path.write_bytes(gzip.compress(text.encode()) if compression == "gzip" else text.encode())


def assert_same(path: Path, format_name: str, text: str, options: IngestSettings) -> None:
    rows = SLOW[format_name](text.splitlines())
    loci, record = run(path, options)
    assert record.format == format_name
    assert loci == slow_loci(rows, options)
    assert record.rows_read == len(rows) == record.rows_kept + sum(record.dropped.values())
    assert record.dropped["uncovered"] == sum(row.total == 0 and row.context in options.contexts for row in rows)
    assert record.dropped["context"] == sum(row.context not in options.contexts for row in rows)
    assert record.loci_written == record.rows_kept - record.duplicates_merged - record.strands_merged
    assert record.percent_contradicting == 0


@pytest.mark.parametrize("format_name", TABLES)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    options=options_of_ingest,
    compression=st.sampled_from(["plain", "gzip", "bgzip"]),
    separator=st.sampled_from(["\t", " ", "   "]),
)
def test_random_tables(tmp_path, format_name, data, options, compression, separator):
    text = data.draw(TABLES[format_name]())
    path = tmp_path / "random"
    write(path, text.replace("\t", separator), compression)
    assert_same(path, format_name, text, options)


@pytest.mark.parametrize("format_name", TABLES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), compression=st.sampled_from(["plain", "gzip"]), name_format=st.booleans())
def test_a_damaged_field_is_one_clear_error_or_none(tmp_path, format_name, data, compression, name_format):
    """No crash, no row lost without a reason, whatever stands in one field."""
    lines = data.draw(TABLES[format_name]()).splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    fields = lines[number].split("\t")
    numbers = st.integers(-(10**20), 10**20).map(str) | st.floats().map(str)
    place = data.draw(st.integers(0, len(fields) - 1))
    fields[place] = data.draw(st.text(max_size=6) | numbers | st.sampled_from(["", ".", "NA", "+", "-", "²", "1_0"]))
    lines[number] = "\t".join(fields)
    path = tmp_path / "damaged"
    write(path, "\n".join(lines) + "\n", compression)
    try:
        _, record = run(path, make_settings(), format_name if name_format else "auto")
        said = ""
    except UserError as error:
        said = str(error)
    if said:
        assert re.fullmatch(f"{path}: [^\n]+", said)
    else:
        assert record.rows_read == record.rows_kept + sum(record.dropped.values())
