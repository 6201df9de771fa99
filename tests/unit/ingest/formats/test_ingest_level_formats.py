"""CGmap, dnmtools, biscuit, methylKit and DSS files: their rules, bad rows, random tables against a slow parser."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ingest_errors import bad_line
from test_ingest_files import BSSEQ, EPIALLELER, Row, make_settings, needs_data, read_lines, run, slow_loci
from test_ingest_more_formats import ALL_CONTEXTS, detect_text, ingest_text, options_of_ingest, sites, table, write

from epivi.base.errors import UserError
from epivi.ingest import text as text_module
from epivi.ingest.layout import IngestSettings
from epivi.ingest.levels import level_counts

METHYLKIT = "chrBase chr base strand coverage freqC freqT"
DSS = "chr pos N X"

# --------------------------------------------------------------------------------------------------------------- CGmap

CGMAP_ROWS = (
    "c1 C 11 CG CG 0.86 18 21",
    "c1 G 12 CG CG 0.5 2 4",
    "c1 C 14 CHG CA 0.0 0 3",
    "c1 G 16 CHH CT 0.11 1 9",
    "c1 G 17 -- -- na 0 0",
    "c1 C 20 CG CG na 0 0",
)


def test_cgmap_says_strand_and_context(tmp_path):
    loci, record = ingest_text(tmp_path, table(*CGMAP_ROWS), contexts=ALL_CONTEXTS)
    assert loci == [("c1", 10, "+", "CG", 20, 25), ("c1", 13, "+", "CHG", 0, 3), ("c1", 15, "-", "CHH", 1, 9)]
    assert (record.format, record.strands_merged, record.percent_checked, record.warnings) == ("cgmap", 1, 4, ())
    assert (record.dropped["context"], record.dropped["uncovered"]) == (1, 1)
    unmerged, _ = ingest_text(tmp_path, table(*CGMAP_ROWS), merge_strands=False)
    assert unmerged == [("c1", 10, "+", "CG", 18, 21), ("c1", 11, "-", "CG", 2, 4)]


def test_the_level_of_cgmap_must_be_that_of_its_counts(tmp_path):
    """Such a file has the unmethylated reads, or a percentage, where the level is expected."""
    with pytest.raises(UserError, match="the percent contradicts the counts in 2 of 2 covered rows"):
        ingest_text(tmp_path, table("c1 C 11 CG CG 0.25 3 4", "c1 C 21 CG CG 0.5 3 4"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("c1 T 31 CG CG 0.5 1 2", "column 2 (base) is 'T' (expected C or G)"),
        ("c1 C 0 CG CG 0.5 1 2", "column 3 (position) is '0' (expected a 1-based position)"),
        ("c1 G 1 CG CG 0.5 1 2", "column 2 (base) is 'G' (expected a plus-strand base"),
        ("c1 C 31 CG CG 50 1 2", "column 6 (level) is '50' (expected a fraction from 0 to 1)"),
        ("c1 C 31 CG CG na 1 2", "column 6 (level) is 'na' (expected a fraction from 0 to 1)"),
        ("c1 C 31 CG CG half 1 2", "column 6 (level) is 'half' (expected a number, or NA"),
        ("c1 C 31 CG CG 0.5 3 2", "column 7 (methylated) is '3' (expected at most the total)"),
        ("c1 C 31 CG CG 0.5 -1 2", "column 7 (methylated) is '-1' (expected a count from 0 to"),
        ("c1 C 31 CG CG 0.5 1 2.0", "column 8 (total) is '2.0' (expected a whole number"),
        ("c1 C 31 CG CG 0.5 1", "7 columns (expected 8)"),
    ],
)
@pytest.mark.parametrize("format_name", ["auto", "cgmap"])
def test_bad_rows_of_cgmap(tmp_path, row, expected, format_name):
    text = table(*CGMAP_ROWS[:4])
    assert bad_line(tmp_path, text + table(row), format_name).startswith(f"line 5: {expected}")


# ------------------------------------------------------------------------------------------------------------ dnmtools

DNMTOOLS_ROWS = (
    "c1 10 + CpG 0.857143 21",
    "c1 11 - CpG 0.5 4",
    "c1 13 + CXG 0 3",
    "c1 15 - CHH 0.111111 9",
    "c1 17 + CCG 1 2",
    "c1 20 + CpG 0 0",
)
DNMTOOLS_HEADER = "#DNMTOOLS 1.4.2\n#c1 1000\n#\n"


@pytest.mark.parametrize("header", ["", DNMTOOLS_HEADER])
def test_dnmtools_counts_are_level_times_reads(tmp_path, header):
    loci, record = ingest_text(tmp_path, header + table(*DNMTOOLS_ROWS), contexts=ALL_CONTEXTS)
    assert loci == [
        ("c1", 10, "+", "CG", 20, 25),
        ("c1", 13, "+", "CHG", 0, 3),
        ("c1", 15, "-", "CHH", 1, 9),
        ("c1", 17, "+", "CHG", 2, 2),
    ]
    assert (record.format, record.is_extrapolated, record.percent_checked, record.warnings) == (
        "dnmtools",
        False,
        5,
        (),
    )


def test_sites_that_dnmtools_marks_as_mutated_are_left_out_with_the_other_c(tmp_path):
    rows = (
        "c1 10 + CpGx 0 8", "c1 11 - CpG 0 9",  # a pair, marked at its first
        "c1 20 + CpG 0.5 8", "c1 21 - CpGx 0 9",  # and at its second
        "c1 30 + CpG 0.5 8", "c1 31 - CpG 1 2",
        "c1 40 + CHHx 0 8", "c1 41 - CpG 1 2",  # no pair
        "c2 42 - CpGx 1 3", "c2 43 + CpG 1 3",  # nor this
    )  # fmt: skip
    loci, record = ingest_text(tmp_path, table(*rows), contexts=ALL_CONTEXTS)
    assert loci == [("c1", 30, "+", "CG", 6, 10), ("c1", 40, "+", "CG", 2, 2), ("c2", 43, "+", "CG", 3, 3)]
    assert record.dropped["mutated"] == 6


@pytest.mark.parametrize("marked", [0, 1])
def test_a_mutated_pair_that_two_blocks_divide(tmp_path, monkeypatch, marked):
    names = [f"CpG{'x' * (row == marked)}" for row in (0, 1)]
    first = table("c1 10 + CpG 0.5 8", f"c1 20 + {names[0]} 0 8")
    second = table(f"c1 21 - {names[1]} 0 9", "c1 30 + CpG 0.5 8")
    monkeypatch.setattr(text_module, "BLOCK_BYTES", len(first))
    loci, record = ingest_text(tmp_path, first + second)
    assert [locus[1] for locus in loci] == [10, 30]
    assert record.dropped["mutated"] == 2


def test_expected_values_of_dnmtools_are_no_counts(tmp_path):
    """counts-nano writes them, in eight columns; cut to six they look like counts."""
    with pytest.raises(UserError, match=r"dnmtools counts-nano, whose levels are expected values .* the modBAM file"):
        ingest_text(tmp_path, table("c1 10 + CpG 0.7312 21 0.1 0.6312"))
    with pytest.raises(
        UserError, match=r"contradicts the counts in 2 of 3 covered rows, first on line 1 .*levels of whole reads"
    ):
        ingest_text(tmp_path, table("c1 10 + CpG 0.7312 21", "c1 20 + CpG 0.31 4", "c1 30 + CpG 0.5 4"))
    _, record = ingest_text(tmp_path, table("c1 10 + CpG 0.7312 21", "c1 20 + CpG 0.5 4", "c1 30 + CpG 0.5 4"))
    assert record.percent_contradicting == 1
    assert any("1 of 3" in warning for warning in record.warnings)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("c1 -1 + CpG 0.5 4", "column 2 (position) is '-1' (expected a 0-based position)"),
        ("c1 0 - CpG 0.5 4", "column 3 (strand) is '-' (expected a plus-strand base"),
        ("c1 30 . CpG 0.5 4", "column 3 (strand) is '.' (expected + or -)"),
        ("c1 30 + CpGy 0.5 4", "column 4 (context) is 'CpGy' (expected CpG, CXG, CCG, CHG, CHH, perhaps with an x"),
        ("c1 30 + CpG 1.5 4", "column 5 (level) is '1.5' (expected a fraction from 0 to 1)"),
        ("c1 30 + CpG nan 4", "column 5 (level) is 'nan' (expected a fraction from 0 to 1)"),
        ("c1 30 + CpG . 4", "column 5 (level) is '.' (expected a number)"),
        ("c1 30 + CpG 0.5 4.0", "column 6 (reads) is '4.0' (expected a whole number"),
        ("c1 30 + CpG 0.5 2000000000", "column 6 (reads) is '2000000000' (expected a count from 0 to"),
        ("c1 30 + CpG 0.5", "5 columns (expected 6)"),
    ],
)
@pytest.mark.parametrize("format_name", ["auto", "dnmtools"])
def test_bad_rows_of_dnmtools(tmp_path, row, expected, format_name):
    text = table(*DNMTOOLS_ROWS[:4])
    assert bad_line(tmp_path, text + table(row), format_name).startswith(f"line 5: {expected}")


# ------------------------------------------------------------------------------------------------------------- biscuit


def test_biscuit_rows_of_one_base_pair_like_bismark_coverage(tmp_path):
    rows = ("c1 10 11 0.857 21", "c1 11 12 0.500 4", "c1 20 21 1.000 2", "c1 30 31 . 0")
    loci, record = ingest_text(tmp_path, table(*rows))
    assert loci == [("c1", 10, "+", "CG", 20, 25), ("c1", 20, ".", "CG", 2, 2)]
    assert (record.format, record.strands_merged, record.strand_unknown, record.warnings) == ("biscuit", 1, 1, ())
    assert ingest_text(tmp_path, table(*rows), contexts=("CHH",))[0][0] == ("c1", 10, ".", "CHH", 18, 21)
    with pytest.raises(UserError, match=r"biscuit rows do not say their context.*single context"):
        ingest_text(tmp_path, table(*rows), contexts=ALL_CONTEXTS)


@pytest.mark.parametrize(
    "rows",
    [
        (
            "c1 10 12 0.800 25 C:0.857:21,G:0.500:4",
            "c1 20 22 1.000 2 C:.:0,G:1.000:2",
            "c1 30 31 0.000 3 C:0.000:3,G:.:0",
        ),
        (
            "c1 10 12 80 20 5 C:0.857:21,G:0.500:4",
            "c1 20 22 100 2 0 C:.:0,G:1.000:2",
            "c1 30 31 0 0 3 C:0.000:3,G:.:0",
        ),
    ],
)
def test_merged_cpgs_of_biscuit(tmp_path, rows):
    loci, record = ingest_text(tmp_path, table(*rows))
    assert loci == [("c1", 10, "+", "CG", 20, 25), ("c1", 20, "+", "CG", 2, 2)]
    assert record.dropped["context"] == 1  # one base of no CpG
    assert ingest_text(tmp_path, table(*rows), merge_strands=False)[0][0] == ("c1", 10, ".", "CG", 20, 25)


@pytest.mark.parametrize("with_counts", [False, True])
def test_biscuit_with_contexts_says_strand_and_context(tmp_path, with_counts):
    values = ("86 18 3", "50 2 2", "0 0 3", "11 1 8") if with_counts else ("0.857 21", "0.500 4", "0.000 3", "0.111 9")
    places = (
        "c1 10 11 C CG CG AACGT", "c1 11 12 G CG CG AACGT", "c1 13 14 C CHG CA AACAG", "c1 15 16 G CHH CT AACTT",
    )  # fmt: skip
    rows = [f"{place} {value}" for place, value in zip(places, values, strict=True)]
    loci, record = ingest_text(tmp_path, table(*rows), contexts=ALL_CONTEXTS)
    assert loci == [("c1", 10, "+", "CG", 20, 25), ("c1", 13, "+", "CHG", 0, 3), ("c1", 15, "-", "CHH", 1, 9)]
    assert (record.format, record.percent_checked, record.percent_contradicting) == ("biscuit", 4, 0)


def test_contexts_of_biscuit_where_gpc_were_methylated(tmp_path):
    rows = [
        f"c1 {10 * i} {10 * i + 1} C {name} CG AACGT 1.000 2" for i, name in enumerate(("HCG", "GCH", "HCHG", "GCG"))
    ]
    loci, record = ingest_text(tmp_path, table(*rows), contexts=ALL_CONTEXTS)
    assert [(locus[1], locus[3]) for locus in loci] == [(0, "CG"), (20, "CHG")]
    assert record.dropped["context"] == 2


def test_biscuit_of_several_samples_is_refused(tmp_path):
    for row in ("c1 10 11 0.500 4 1.000 2", "c1 10 12 0.500 4 C:0.500:4,G:.:0 1.000 2 C:.:0,G:1.000:2"):
        assert "expected those of one sample: `biscuit vcf2bed -s SAMPLE`" in bad_line(tmp_path, table(row, row))


def test_biscuit_counts_alone_must_be_named(tmp_path):
    """They look like whole CpGs of Bismark, one base off."""
    rows = table("c1 10 11 75 3 1", "c1 20 21 0 0 2")
    assert detect_text(tmp_path, rows) == "bismark_cov"
    assert [locus[1] for locus in ingest_text(tmp_path, rows, format_name="biscuit")[0]] == [10, 20]


def test_counts_in_place_of_a_level_are_not_taken_for_biscuit(tmp_path):
    """One methylated of three reads: not the level 1 of three."""
    assert "the format is not recognised" in bad_line(tmp_path, table("c1 10 11 1 3", "c1 20 21 0 2"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("c1 -1 0 0.500 4", "column 2 (start) is '-1' (expected a 0-based position)"),
        ("c1 30 32 0.500 4", "column 3 (end) is '32' (expected the start plus 1)"),
        ("c1 30 31 50 4", "column 4 (level) is '50' (expected a fraction from 0 to 1)"),
        ("c1 30 31 . 4", "column 4 (level) is '.' (expected a fraction from 0 to 1)"),
        ("c1 30 31 half 4", "column 4 (level) is 'half' (expected a number, or NA"),
        ("c1 30 31 0.500 -4", "column 5 (coverage) is '-4' (expected a count from 0 to"),
        ("c1 30 31 0.500", "4 columns (expected 5)"),
    ],
)
@pytest.mark.parametrize("format_name", ["auto", "biscuit"])
def test_bad_rows_of_biscuit(tmp_path, row, expected, format_name):
    text = table("c1 10 11 0.857 21", "c1 11 12 0.500 4", "c1 20 21 1.000 2")
    assert bad_line(tmp_path, text + table(row), format_name).startswith(f"line 4: {expected}")


# ----------------------------------------------------------------------------------------------------------- methylKit

METHYLKIT_ROWS = ("c1.11 c1 11 F 21 85.71 14.29", "c1.12 c1 12 R 4 50.00 50.00", "c1.21 c1 21 F 96 18.75 80.21")


def test_methylkit_reads_are_those_of_its_percents(tmp_path):
    loci, record = ingest_text(tmp_path, table(METHYLKIT, *METHYLKIT_ROWS))
    # Of the 96 reads one has neither C nor T.
    assert loci == [("c1", 10, "+", "CG", 20, 25), ("c1", 20, "+", "CG", 18, 95)]
    assert (record.format, record.rows_read, record.is_extrapolated, record.warnings) == ("methylkit", 3, False, ())
    unmerged, _ = ingest_text(tmp_path, table(METHYLKIT, *METHYLKIT_ROWS), merge_strands=False)
    assert unmerged[1] == ("c1", 11, "-", "CG", 2, 4)
    with pytest.raises(UserError, match=r"methylKit rows do not say their context.*single context"):
        ingest_text(tmp_path, table(METHYLKIT, *METHYLKIT_ROWS), contexts=ALL_CONTEXTS)


def test_generic_tables_of_methylkit_and_padded_percents(tmp_path):
    generic = table("chr start strand coverage freqC freqT", "c1 11 + 21 85.71 14.29", "c1 12 - 4 50 50")
    assert ingest_text(tmp_path, generic)[0] == [("c1", 10, "+", "CG", 20, 25)]
    padded = (
        METHYLKIT.replace(" ", "\t") + "\nc1.11\tc1\t11\tF\t4\t 75.00\t 25.00\nc1.21\tc1\t21\tF\t2\t100.00\t  0.00\n"
    )
    assert ingest_text(tmp_path, padded)[0] == [("c1", 10, "+", "CG", 3, 4), ("c1", 20, "+", "CG", 2, 2)]


def test_percents_that_are_no_share_of_the_coverage(tmp_path):
    with pytest.raises(
        UserError, match=r"contradicts the counts in 2 of 3 covered rows, first on line 2 .*percents of whole reads"
    ):
        ingest_text(
            tmp_path, table(METHYLKIT, "x c1 11 F 21 80.00 20.00", "x c1 21 F 4 55 45", "x c1 31 F 4 50.00 50.00")
        )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("x c1 0 F 4 50.00 50.00", "column 3 (base) is '0' (expected a 1-based position)"),
        ("x c1 31 X 4 50.00 50.00", "column 4 (strand) is 'X' (expected F, R, + or -)"),
        ("x c1 1 R 4 50.00 50.00", "column 4 (strand) is 'R' (expected a plus-strand base"),
        ("x c1 31 F 4.5 50.00 50.00", "column 5 (coverage) is '4.5' (expected a whole number"),
        ("x c1 31 F 4 150.00 50.00", "column 6 (freqC) is '150.00' (expected a percentage from 0 to 100)"),
        ("x c1 31 F 4 50.00 30.00", "column 7 (freqT) is '30.00' (expected a percentage that with freqC makes 90 to"),
        ("x c1 31 F 4 0.50 0.50", "column 7 (freqT) is '0.50' (expected a percentage that with freqC makes 90 to 100"),
        ("x c1 31 F 4 NaN 50.00", "column 7 (freqT) is '50.00' (expected a percentage that with freqC makes 90 to 100"),
        ("x c1 31 F 4 50.00", "6 columns (expected 7)"),
    ],
)
@pytest.mark.parametrize("format_name", ["auto", "methylkit"])
def test_bad_rows_of_methylkit(tmp_path, row, expected, format_name):
    assert bad_line(tmp_path, table(METHYLKIT, *METHYLKIT_ROWS, row), format_name).startswith(f"line 5: {expected}")


def test_headers_of_methylkit(tmp_path):
    missing = bad_line(tmp_path, table("chrBase chr base strand coverage freqC", "x c1 1 F 1 100"), "methylkit")
    assert missing.startswith("line 1: the header lacks freqT (expected chr, strand, coverage,")
    assert bad_line(tmp_path, table(METHYLKIT)) == "the file has no rows"


# ----------------------------------------------------------------------------------------------------------------- DSS


@pytest.mark.parametrize("header", [DSS, "Chr Pos n x", "chrom position N X"])
def test_dss_tables_are_counts_and_no_beta_values(tmp_path, header):
    loci, record = ingest_text(tmp_path, table(header, "c1 11 21 18", "c1 12 4 2", "c1 21 2 2", "c1 31 0 0"))
    assert loci == [("c1", 10, "+", "CG", 20, 25), ("c1", 20, ".", "CG", 2, 2)]
    assert (record.format, record.rows_read, record.strand_unknown, record.warnings) == ("dss", 4, 1, ())
    with pytest.raises(UserError, match=r"DSS rows do not say their context.*single context"):
        ingest_text(tmp_path, table(header, "c1 11 21 18"), contexts=ALL_CONTEXTS)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("c1 0 4 2", "column 2 (pos) is '0' (expected a 1-based position)"),
        ("c1 31 4 5", "column 4 (X) is '5' (expected at most N, the reads)"),
        ("c1 31 4 0.5", "column 4 (X) is '0.5' (expected a whole number"),
        ("c1 31 -4 0", "column 3 (N) is '-4' (expected a count from 0 to"),
        ("1 c1 31 4 2", "5 columns (expected 4)"),
    ],
)
@pytest.mark.parametrize("format_name", ["auto", "dss"])
def test_bad_rows_of_dss(tmp_path, row, expected, format_name):
    text = table(DSS, "c1 11 21 18", "c1 12 4 2")
    assert bad_line(tmp_path, text + table(row), format_name).startswith(f"line 4: {expected}")


def test_a_dss_table_without_its_header(tmp_path):
    error = bad_line(tmp_path, table("c1 11 21 18"), "dss")
    assert error == "line 1: the header lacks chr (expected chr, pos, N, X)"


# -------------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize(("decimals", "most"), [(3, 999), (4, 9_999), (6, 20_000)])
def test_every_count_comes_back_from_its_rounded_level(decimals, most):
    for total in (1, 2, 3, 7, 500, most):
        meth = np.arange(total + 1)
        level = np.array([float(f"{m / total:.{decimals}f}") for m in meth])
        found = level_counts(level, np.full(total + 1, total, dtype=np.int32), 0.5 * 10.0**-decimals)
        assert (found.meth == meth).all()
        assert not found.contradicts.any()
        assert not found.is_ambiguous.any()


def test_a_level_too_coarse_for_its_coverage_is_said_to_be_extrapolated(tmp_path):
    row = table("c1 10 11 0.333 3000")
    _, record = ingest_text(tmp_path, row)
    assert record.is_extrapolated
    assert not ingest_text(tmp_path, row, max_coverage=500)[1].is_extrapolated  # no locus either


# --------------------------------------------------------------------------------------------------------- recognition

FORMS = {
    "cgmap": ("", "c1 G 11 CHH CC 0.1 1 10"),
    "dnmtools": ("", "c1 11 + CpG 0.5 10"),
    "biscuit": ("", "c1 10 11 0.500 10"),
    "methylkit": (METHYLKIT, "c1.11 c1 11 F 10 50.00 50.00"),
    "dss": (DSS, "c1 11 10 5"),
}


@pytest.mark.parametrize("separator", ["\t", "  "])
@pytest.mark.parametrize("format_name", FORMS)
def test_each_form_is_recognised_and_no_other(tmp_path, format_name, separator):
    from epivi.ingest.read import READERS

    header, row = FORMS[format_name]
    lines = [separator.join(line.split()) for line in (header, row) if line]
    assert detect_text(tmp_path, "\n".join(lines) + "\n") == format_name
    claims = [
        name
        for name, reader in READERS.items()
        if not reader.is_bam and reader.recognises((header if reader.by_header and header else row).split())
    ]
    assert [name for name in claims if name != "beta_matrix"] == [format_name]  # a DSS table has its header too
    assert claims[0] == format_name


# --------------------------------------------------------------------------------------------------------- public data


def rewritten(lines: list[list[str]], format_name: str) -> str:
    """Rows of a Bismark cytosine report in another format."""
    rows = []
    for contig, position, strand, meth, unmeth, context, *_ in lines:
        m, n = int(meth), int(meth) + int(unmeth)
        level = m / n if n else 0.0
        base, pos0 = "C" if strand == "+" else "G", int(position) - 1
        rows.append(
            {
                "cgmap": f"{contig} {base} {position} {context} C{context[1]} {round(level, 2) if n else 'na'} {m} {n}",
                "dnmtools": f"{contig} {pos0} {strand} {'CpG' if context == 'CG' else context} {level:.6g} {n}",
                "biscuit": f"{contig} {pos0} {position} {base} {context} CX NNCNN {f'{level:.3f}' if n else '.'} {n}",
                "methylkit": f"x {contig} {position} {'F' if strand == '+' else 'R'} {n} {100 * level:.2f}"
                f" {100 - 100 * level:.2f}",
            }[format_name]
        )
    return table(*([METHYLKIT] if format_name == "methylkit" else []), *rows)


@needs_data
@pytest.mark.parametrize("format_name", ["cgmap", "dnmtools", "biscuit", "methylkit"])
@pytest.mark.parametrize("merge_strands", [True, False])
def test_a_cytosine_report_rewritten(tmp_path, format_name, merge_strands):
    source = EPIALLELER / "dragen-pe.CX_report.txt.gz"
    contexts = ("CG",) if format_name == "methylkit" else ALL_CONTEXTS
    lines = [line.split() for line in read_lines(source)]
    kept = [line for line in lines if line[5] in contexts]
    expected, report = run(source, make_settings(contexts=contexts, merge_strands=merge_strands))
    loci, record = ingest_text(tmp_path, rewritten(kept, format_name), contexts=contexts, merge_strands=merge_strands)
    assert (loci, record.format, record.percent_contradicting) == (expected, format_name, 0)
    assert record.rows_read == len(kept)
    assert len(loci) > 200
    assert record.strands_merged == report.strands_merged


@needs_data
def test_coverage_rewritten_as_dss(tmp_path):
    source = BSSEQ / "test_data.fastq_bismark.bismark.cov.gz"
    rows = [line.split() for line in read_lines(source)]
    text = table(DSS, *(f"{contig} {pos} {int(m) + int(u)} {m}" for contig, pos, _, _, m, u in rows))
    assert ingest_text(tmp_path, text)[0] == run(source, make_settings())[0]


# ------------------------------------------------------------------------------------------------------- random tables


def slow_cgmap(lines: list[str]) -> list[Row]:
    rows = []
    for line in lines:
        contig, base, position, context, _, _, meth, total = line.split()
        context = context if context != "--" else "?other"
        rows.append(Row(contig, int(position) - 1, "+" if base == "C" else "-", context, int(meth), int(total)))
    return rows


def slow_dnmtools(lines: list[str]) -> list[Row]:
    rows = []
    for line in lines:
        contig, pos0, strand, context, level, total = line.split()
        context = {"CpG": "CG", "CHH": "CHH"}.get(context, "CHG")
        rows.append(Row(contig, int(pos0), strand, context, round(float(level) * int(total)), int(total)))
    return rows


def slow_biscuit(lines: list[str]) -> list[Row]:
    rows = []
    for line in lines:
        contig, start, end, level, total, *_ = line.split()
        meth = 0 if level == "." else round(float(level) * int(total))
        strand, context = ("*", "CG") if int(end) - int(start) == 2 else (".", "?")
        rows.append(Row(contig, int(start), strand, context, meth, int(total)))
    return rows


def slow_methylkit(lines: list[str]) -> list[Row]:
    rows = []
    for line in lines[1:]:
        _, contig, position, strand, coverage, c, t = line.split()
        meth, unmeth = (round(int(coverage) * float(share) / 100) for share in (c, t))
        rows.append(Row(contig, int(position) - 1, {"F": "+", "R": "-"}[strand], "?", meth, meth + unmeth))
    return rows


def slow_dss(lines: list[str]) -> list[Row]:
    cells = [line.split() for line in lines[1:]]
    return [Row(contig, int(pos) - 1, ".", "?", int(x), int(n)) for contig, pos, n, x in cells]


SLOW = {
    "cgmap": slow_cgmap,
    "dnmtools": slow_dnmtools,
    "biscuit": slow_biscuit,
    "methylkit": slow_methylkit,
    "dss": slow_dss,
}
# A base has one context: that of its place.
CONTEXT_AT = ("CG", "CG", "CHG", "CHH")


def row_of(format_name: str, contig: str, pos0: int, meth: int, unmeth: int, is_minus: bool) -> str:
    total = meth + unmeth
    level = meth / total if total else 0.0
    context = CONTEXT_AT[(pos0 - is_minus) % 4]
    if format_name == "cgmap":
        share = f"{level:.2f}" if total else "na"
        return f"{contig} {'G' if is_minus else 'C'} {pos0 + 1} {context} CN {share} {meth} {total}"
    if format_name == "dnmtools":
        name = {"CG": "CpG", "CHG": "CXG", "CHH": "CHH"}[context]
        return f"{contig} {pos0} {'-' if is_minus else '+'} {name} {level:.6g} {total}"
    if format_name == "biscuit":
        return f"{contig} {pos0} {pos0 + 1} {f'{level:.3f}' if total else '.'} {total}"
    if format_name == "methylkit":
        strand = "R" if is_minus else "F"
        return f"x {contig} {pos0 + 1} {strand} {total} {100 * level:.2f} {100 - 100 * level if total else 0:.2f}"
    return f"{contig} {pos0 + 1} {total} {meth}"


@st.composite
def tables(draw, format_name: str) -> str:
    rows = draw(sites)
    minus = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    header = {"methylkit": [METHYLKIT], "dss": [DSS]}.get(format_name, [])
    return table(*header, *(row_of(format_name, *row, is_minus) for row, is_minus in zip(rows, minus, strict=True)))


ONE_CONTEXT = ("biscuit", "methylkit", "dss")
CHECKS = [HealthCheck.function_scoped_fixture]


def assert_same(path: Path, format_name: str, text: str, options: IngestSettings) -> None:
    rows = SLOW[format_name](text.splitlines())
    loci, record = run(path, options)
    assert record.format == format_name
    assert loci == slow_loci(rows, options)
    assert record.rows_read == len(rows) == record.rows_kept + sum(record.dropped.values())
    assert record.loci_written == record.rows_kept - record.duplicates_merged - record.strands_merged
    assert (record.percent_contradicting, record.is_extrapolated) == (0, False)


@pytest.mark.parametrize("format_name", SLOW)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(data=st.data(), options=options_of_ingest, compression=st.sampled_from(["plain", "gzip", "bgzip"]))
def test_random_tables(tmp_path, format_name, data, options, compression):
    text = data.draw(tables(format_name))
    if format_name in ONE_CONTEXT and len(options.contexts) > 1:
        options = make_settings(merge_strands=options.merge_strands)
    if format_name == "biscuit" and not any("." in line.split()[3] for line in text.splitlines()):
        text += "chr1\t99\t100\t0.500\t2\n"
    path = tmp_path / "random"
    write(path, text, compression)
    assert_same(path, format_name, text, options)


@pytest.mark.parametrize("format_name", SLOW)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=CHECKS)
@given(data=st.data(), compression=st.sampled_from(["plain", "gzip"]), name_format=st.booleans())
def test_a_damaged_field_is_one_clear_error_or_none(tmp_path, format_name, data, compression, name_format):
    """No crash, no row lost without a reason, whatever stands in one field."""
    lines = data.draw(tables(format_name)).splitlines()
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


# ----------------------------------------------------------------------------------------- contexts that are not said


@pytest.mark.parametrize("format_name", FORMS)
def test_an_assumed_context_is_recorded(tmp_path, format_name):
    header, row = FORMS[format_name]
    _, record = ingest_text(tmp_path, table(*filter(None, (header, row))))
    assert record.context_is_assumed == (format_name in ONE_CONTEXT)


@pytest.mark.parametrize("format_name", ONE_CONTEXT)
def test_the_reference_says_what_the_file_does_not(tmp_path, format_name):
    import pysam

    genome = tmp_path / "genome.fa"
    genome.write_text(">c1\nAACGAACAGAACAAA\n")  # a CpG at 2 and 3, CHG at 6, CHH at 11
    pysam.faidx(str(genome))
    header = {"methylkit": [METHYLKIT], "dss": [DSS]}.get(format_name, [])
    places = ((2, False), (3, True), (6, False), (11, False))
    if format_name == "biscuit":
        rows = [f"c1 {pos0} {pos0 + 1} 0.500 4" for pos0, _ in places]
    elif format_name == "dss":
        rows = [f"c1 {pos0 + 1} 4 2" for pos0, _ in places]
    else:
        rows = [f"x c1 {pos0 + 1} {'R' if is_minus else 'F'} 4 50.00 50.00" for pos0, is_minus in places]
    loci, record = ingest_text(tmp_path, table(*header, *rows), contexts=ALL_CONTEXTS, reference=str(genome))
    assert [(locus[1], locus[3], *locus[4:]) for locus in loci] == [
        (2, "CG", 4, 8),
        (6, "CHG", 2, 4),
        (11, "CHH", 2, 4),
    ]
    assert not record.context_is_assumed
