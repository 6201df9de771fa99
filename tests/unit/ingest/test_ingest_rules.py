"""One test for each rule of ingest, on tables of a few rows."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from epivi.base.errors import UserError
from epivi.ingest import spill as spill_module
from epivi.ingest import text as text_module
from epivi.ingest.layout import Counts, IngestSettings, ingest_settings
from epivi.ingest.qc import QcRecord
from epivi.ingest.read import detect, ingest
from epivi.tables.columns import CONTEXTS, STRANDS


def settings(**changes) -> IngestSettings:
    defaults = {
        "contexts": ("CG",),
        "modification": "m",
        "merge_strands": True,
        "include": ("*",),
        "exclude": (),
        "min_coverage": 1,
        "max_coverage": 500,
    }
    return IngestSettings(**{**defaults, **changes})


def table(*rows: str) -> str:
    """Rows as text; fields are written with spaces here and tabs there."""
    return "".join("\t".join(row.split()) + "\n" for row in rows)


def run(tmp_path: Path, text: str, *, format_name: str = "auto", **changes) -> tuple[list[tuple], QcRecord]:
    path = tmp_path / "input.txt"
    path.write_text(text)
    return run_file(path, format_name=format_name, **changes)


def run_file(path: Path, *, format_name: str = "auto", **changes) -> tuple[list[tuple], QcRecord]:
    loci: list[tuple] = []

    def write(contig: str, counts: Counts) -> None:
        assert counts.meth.dtype == counts.total.dtype == counts.pos0.dtype == np.int32
        columns = (column.tolist() for column in counts)
        for pos0, strand, context, meth, total in zip(*columns, strict=True):
            loci.append((contig, pos0, STRANDS[strand], CONTEXTS[context], meth, total))

    record = ingest(path, "s", settings(**changes), write, format_name=format_name, spill_directory=path.parent)
    assert record.rows_read == record.rows_kept + sum(record.dropped.values())
    assert record.loci_written == len(loci) == record.rows_kept - record.duplicates_merged - record.strands_merged
    return loci, record


def modkit(start: int, code: str, strand: str, percent: float, meth: int, total: int, contig: str = "chr1") -> str:
    end = start + 1
    return (
        f"{contig} {start} {end} {code} {total} {strand} {start} {end} 255,0,0 {total} {percent:.2f}"
        f" {meth} {total - meth} 0 0 0 0 0"
    )


def old_bed(
    start: int, end: int, strand: str, percent: str, tail: str = "", name: str = "5mC", coverage: int = 10
) -> str:
    return f"chr1 {start} {end} {name} 1000 {strand} {start} {end} 0,0,0 {coverage} {percent} {tail}"


# ------------------------------------------------------------------------------------------------------------ Bismark


def test_coverage_positions_become_zero_based_and_adjacent_bases_one_cpg(tmp_path):
    text = table("chr1 11 11 50 1 1", "chr1 12 12 100 3 0", "chr1 20 20 0 0 4", "chr1 31 31 100 1 0")
    loci, record = run(tmp_path, text)
    assert loci == [
        ("chr1", 10, "+", "CG", 4, 5),
        ("chr1", 19, ".", "CG", 0, 4),
        ("chr1", 30, ".", "CG", 1, 1),
    ]
    assert (record.strands_merged, record.strand_unknown, record.duplicates_merged) == (1, 2, 0)


def test_coverage_runs_pair_from_the_left_only_if_even(tmp_path):
    four = [f"chr1 {position} {position} 100 1 0" for position in (1, 2, 3, 4)]
    three = [f"chr2 {position} {position} 100 1 0" for position in (1, 2, 3)]
    loci, record = run(tmp_path, table(*four, *three))
    assert loci == [
        ("chr1", 0, "+", "CG", 2, 2),
        ("chr1", 2, "+", "CG", 2, 2),
        *(("chr2", pos0, ".", "CG", 1, 1) for pos0 in (0, 1, 2)),
    ]
    assert record.strand_unknown == 3


def test_pairs_do_not_reach_across_contigs(tmp_path):
    loci, _ = run(tmp_path, table("chr1 7 7 100 1 0", "chr2 8 8 100 1 0"))
    assert [locus[:3] for locus in loci] == [("chr1", 6, "."), ("chr2", 7, ".")]


def test_coverage_without_merging_keeps_every_base(tmp_path):
    loci, record = run(tmp_path, table("chr1 11 11 50 1 1", "chr1 12 12 100 3 0"), merge_strands=False)
    assert loci == [("chr1", 10, ".", "CG", 1, 2), ("chr1", 11, ".", "CG", 3, 3)]
    assert record.strand_unknown == 0


def test_merged_cpg_coverage_of_bismark(tmp_path):
    loci, record = run(tmp_path, table("chr1 11 12 50 2 2", "chr1 13 14 100 3 0"))
    assert loci == [("chr1", 10, "+", "CG", 2, 4), ("chr1", 12, "+", "CG", 3, 3)]
    assert record.strand_unknown == 0


def test_zero_based_coverage_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"line 2: column 2 \(start\) is '11'.*zero-based"):
        run(tmp_path, table("chr1 10 11 50 2 2", "chr1 11 12 100 3 0"))


@pytest.mark.parametrize(("row", "format_name"), [("chr1 10 11 50 2 2", "bismark_cov"), ("chr1 10 10 50 2 2", "auto")])
def test_bedgraph_with_a_track_line_is_no_coverage_file(tmp_path, row, format_name):
    with pytest.raises(UserError, match="track line"):
        run(tmp_path, 'track type="bedGraph"\n' + table(row), format_name=format_name)


def test_coverage_takes_the_one_requested_context(tmp_path):
    loci, record = run(tmp_path, table("chr1 11 11 50 1 1", "chr1 12 12 100 3 0"), contexts=("CHH",))
    assert [locus[:4] for locus in loci] == [("chr1", 10, ".", "CHH"), ("chr1", 11, ".", "CHH")]
    assert set(record.methylation) == {"CHH"}
    with pytest.raises(UserError, match=r"do not say their context.*CG, CHH.*single context"):
        run(tmp_path, table("chr1 11 11 50 1 1"), contexts=("CG", "CHH"))


def test_report_minus_strand_of_a_cpg_moves_one_base_left_and_other_contexts_stay(tmp_path):
    text = table(
        "chr1 11 + 1 2 CG CGA",
        "chr1 12 - 3 0 CG CGT",
        "chr1 15 - 0 1 CG CGT",
        "chr1 17 - 2 2 CHG CAG",
        "chr1 18 + 0 0 CHH CAA",
        "chr1 19 + 1 0 CN CN",
    )
    loci, record = run(tmp_path, text, contexts=("CG", "CHG", "CHH"))
    assert loci == [
        ("chr1", 10, "+", "CG", 4, 6),
        ("chr1", 13, "+", "CG", 0, 1),
        ("chr1", 16, "-", "CHG", 2, 4),
    ]
    assert record.strands_merged == 1
    assert record.dropped["uncovered"] == 1
    assert record.dropped["context"] == 1
    assert record.is_sorted
    unmerged, _ = run(tmp_path, text, merge_strands=False)
    assert unmerged == [
        ("chr1", 10, "+", "CG", 1, 3),
        ("chr1", 11, "-", "CG", 3, 3),
        ("chr1", 14, "-", "CG", 0, 1),
    ]


def test_report_without_the_column_of_bases(tmp_path):
    loci, record = run(tmp_path, table("chr1 11 + 1 2 CG"))
    assert (loci, record.format) == ([("chr1", 10, "+", "CG", 1, 3)], "cytosine_report")


# ---------------------------------------------------------------------------------------------------------- bedMethyl


def test_modkit_total_is_valid_coverage_and_strands_are_merged(tmp_path):
    text = table(modkit(10, "m", "+", 25, 1, 4), modkit(11, "m", "-", 100, 2, 2), modkit(20, "m", ".", 50, 3, 6))
    loci, record = run(tmp_path, text)
    assert loci == [("chr1", 10, "+", "CG", 3, 6), ("chr1", 20, "+", "CG", 3, 6)]
    assert record.layout == "modkit"
    unmerged, _ = run(tmp_path, text, merge_strands=False)
    assert [locus[1:3] for locus in unmerged] == [(10, "+"), (11, "-"), (20, ".")]


def test_modkit_combined_rows_are_never_paired(tmp_path):
    """Rows of strand "." next to each other are two positions, because each already holds both strands."""
    loci, _ = run(tmp_path, table(modkit(10, "m", ".", 100, 1, 1), modkit(11, "m", ".", 100, 1, 1)))
    assert [locus[1:3] for locus in loci] == [(10, "+"), (11, "+")]


@pytest.mark.parametrize("code", ["m", "27551", "5mC"])
def test_modkit_codes_of_methylation(tmp_path, code):
    text = table(modkit(10, "h", "+", 0, 0, 4), modkit(10, code, "+", 25, 1, 4), modkit(10, "a", "+", 0, 0, 9))
    loci, record = run(tmp_path, text)
    assert loci == [("chr1", 10, "+", "CG", 1, 4)]
    assert record.dropped["other_modification"] == 2
    loci, _ = run(tmp_path, text, modification="h")
    assert loci == [("chr1", 10, "+", "CG", 0, 4)]


def test_modkit_motifs_say_the_context(tmp_path):
    text = table(
        modkit(10, "m,CG,0", "+", 25, 1, 4), modkit(12, "m,CHH,0", "-", 50, 1, 2), modkit(14, "m,GATC,3", "+", 0, 0, 2)
    )
    loci, record = run(tmp_path, text, contexts=("CG", "CHH"))
    assert loci == [("chr1", 10, "+", "CG", 1, 4), ("chr1", 12, "-", "CHH", 1, 2)]
    assert record.dropped["context"] == 1
    with pytest.raises(UserError, match="single context"):
        run(tmp_path, text + table(modkit(20, "m", "+", 25, 1, 4)), contexts=("CG", "CHH"))


def test_modkit_with_tabs_then_spaces(tmp_path):
    fields = modkit(10, "m", "+", 25, 1, 4).split()
    loci, record = run(tmp_path, "\t".join(fields[:10]) + "\t" + " ".join(fields[10:]) + "\n")
    assert (loci, record.layout) == ([("chr1", 10, "+", "CG", 1, 4)], "modkit")


@pytest.mark.parametrize(
    ("tails", "column"),
    [(("3 1", "0 5"), 12), (("1 3", "5 0"), 13), (("1 3 0", "5 0 2"), 13), (("3 1 0 0 0", "0 5 0 0 0"), 12)],
)
def test_two_counts_follow_the_percent(tmp_path, tails, column):
    text = table(old_bed(10, 12, ".", "75.00", tails[0]), old_bed(20, 22, "+", "0.00", tails[1]))
    loci, record = run(tmp_path, text)
    assert loci == [("chr1", 10, "+", "CG", 3, 4), ("chr1", 20, "+", "CG", 0, 5)]
    assert record.layout == f"two counts, modified in column {column}"
    assert record.percent_contradicting == 0


def test_two_counts_of_equal_size_wait_for_a_telling_row(tmp_path, monkeypatch):
    """The first block may hold no row that tells the order: with small blocks the second one decides."""
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 120)
    rows = [old_bed(10 * number, 10 * number + 2, ".", "50.00", "2 2") for number in range(5)]
    loci, record = run(tmp_path, table(*rows, old_bed(90, 92, ".", "75.00", "3 1")))
    assert loci[-1] == ("chr1", 90, "+", "CG", 3, 4)
    assert record.layout == "two counts, modified in column 12"


def test_coverage_and_percent_alone(tmp_path):
    text = table(
        old_bed(10, 11, "+", "33", coverage=10), old_bed(11, 12, "-", "100", coverage=5), old_bed(20, 21, "+", "37")
    )
    loci, record = run(tmp_path, text)
    assert loci == [("chr1", 10, "+", "CG", 8, 15), ("chr1", 20, "+", "CG", 4, 10)]  # 3.3 -> 3, and 5; 3.7 -> 4
    assert (record.layout, record.is_extrapolated) == ("coverage and percent", True)
    assert record.percent_checked == 0


def test_coverage_and_percent_followed_by_words(tmp_path):
    loci, record = run(tmp_path, table(old_bed(10, 11, "+", "30", "CG CG 40", name="library7")))
    assert (loci, record.layout) == ([("chr1", 10, "+", "CG", 3, 10)], "coverage and percent")


def test_labels_of_old_bedmethyl_mean_methylation_but_codes_do_not(tmp_path):
    text = table(
        old_bed(10, 11, "+", "30"), old_bed(20, 21, "+", "30", name="5hmC"), old_bed(30, 31, "+", "30", name=".")
    )
    assert [locus[1] for locus in run(tmp_path, text)[0]] == [10, 30]
    assert [locus[1] for locus in run(tmp_path, text, modification="h")[0]] == [20]


@pytest.mark.parametrize(
    ("text", "modification", "expected"),
    [
        (table(old_bed(10, 12, ".", "75.00", "1 3", name="5hmC")), "m", "all are of 5hmC (expected rows of m or 27551"),
        (table(modkit(10, "m", "+", 50, 1, 2)), "h", "all are of m (expected rows of h or 76792"),
        (table(modkit(10, "h", "+", 50, 1, 2)), "mh", "all are of h (expected rows of C, or rows of m in modkit's"),
        (
            table(old_bed(10, 11, "+", "30", name="m"), old_bed(12, 13, "+", "30", name="h")),
            "mh",
            "all are of h, m, and rows of 5mC count 5hmC too only in the 18 columns of modkit (expected rows of C",
        ),
    ],
    ids=["label", "h", "mh of h", "mh of 11 columns"],
)
def test_file_of_other_modifications_alone_is_refused(tmp_path, text, modification, expected):
    with pytest.raises(UserError, match=r"no row counts loci\.modification ") as caught:
        run(tmp_path, text, modification=modification)
    assert expected in str(caught.value)


def test_old_bedmethyl_of_unknown_strand_pairs_like_bismark_coverage(tmp_path):
    text = table(old_bed(10, 11, ".", "30"), old_bed(11, 12, ".", "50"), old_bed(30, 31, ".", "50"))
    assert [(*locus[1:3], *locus[4:]) for locus in run(tmp_path, text)[0]] == [(10, "+", 8, 20), (30, ".", 5, 10)]


# ----------------------------------------------------------------------------------------------------------- methylome

METHYLOME = "seqnames\tstart\tstrand\tcontext\tcounts.methylated\tcounts.total\tstatus\n"


def test_methylome_columns_are_found_by_name(tmp_path):
    text = "status\tcounts.total\tcounts.methylated\tcontext\tstrand\tstart\tseqnames\n" + table(
        "M 4 1 CG + 11 1", "U 5 0 CG - 12 1", "U 5 0 CHG - 20 1", "U 6 2 CG * 30 1", "U 6 2 CG * 31 1"
    )
    loci, record = run(tmp_path, text)
    assert loci == [("1", 10, "+", "CG", 1, 9), ("1", 29, "+", "CG", 4, 12)]
    assert (record.format, record.dropped["context"]) == ("methylome", 1)


def test_methylome_without_a_needed_column(tmp_path):
    text = METHYLOME.replace("counts.total", "coverage") + table("1 11 + CG 1 4 M")
    with pytest.raises(UserError, match=r"line 1: the header lacks counts\.total"):
        run(tmp_path, text, format_name="methylome")


# ------------------------------------------------------------------------------------------------- filters and sorting


def test_coverage_limits_act_on_merged_cpgs_and_count_their_rows(tmp_path):
    text = table(
        "chr1 11 + 1 1 CG CGA",  # 2 + 2 reads: kept
        "chr1 12 - 1 1 CG CGA",
        "chr1 21 + 5 0 CG CGA",  # 5 + 1 reads: above
        "chr1 22 - 1 0 CG CGA",
        "chr1 31 + 1 1 CG CGA",  # 2 reads: below
        "chr1 41 + 0 0 CG CGA",
    )
    loci, record = run(tmp_path, text, min_coverage=3, max_coverage=5)
    assert loci == [("chr1", 10, "+", "CG", 2, 4)]
    assert record.dropped == {
        "control": 0,
        "contig": 0,
        "other_modification": 0,
        "reference_mismatch": 0,
        "no_position": 0,
        "mutated": 0,
        "context": 0,
        "uncovered": 1,
        "below_min_coverage": 1,
        "above_max_coverage": 2,
    }
    assert record.strands_merged == 1


def test_repeated_rows_are_summed_and_counted(tmp_path):
    text = table("chr1 11 + 1 1 CG CGA", "chr1 12 - 1 0 CG CGA", "chr1 11 + 2 0 CG CGA", "chr1 12 - 0 1 CG CGA")
    loci, record = run(tmp_path, text)
    assert loci == [("chr1", 10, "+", "CG", 4, 6)]
    assert (record.duplicates_merged, record.strands_merged) == (2, 1)
    assert not record.is_sorted
    assert any("repeat a position" in warning for warning in record.warnings)


def test_contig_patterns(tmp_path):
    text = table(*(f"{contig} 11 11 100 1 0" for contig in ("chr1", "chr10", "chrM", "scaffold_1")))
    loci, record = run(tmp_path, text, include=("chr*",), exclude=("chrM", "chrY"))
    assert [locus[0] for locus in loci] == ["chr1", "chr10"]
    assert record.dropped["contig"] == 2
    assert record.rows_by_contig == {"chr1": 1, "chr10": 1, "chrM": 1, "scaffold_1": 1}
    assert record.loci_by_contig == {"chr1": 1, "chr10": 1}


def test_contigs_come_in_natural_order_and_scattered_ones_together(tmp_path):
    text = table("chr10 21 21 100 1 0", "chr2 5 5 100 2 0", "chrX 1 1 100 3 0", "chr10 3 3 100 4 0", "chr2 9 9 100 5 0")
    loci, record = run(tmp_path, text)
    assert [(locus[0], locus[1], locus[4]) for locus in loci] == [
        ("chr2", 4, 2),
        ("chr2", 8, 5),
        ("chr10", 2, 4),
        ("chr10", 20, 1),
        ("chrX", 0, 3),
    ]
    assert not record.is_sorted


def test_a_contig_that_comes_back_in_a_later_block_is_not_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 50)
    text = table(*(f"{contig} {pos} {pos} 100 1 0" for contig, pos in (("a", 1), ("b", 1), ("b", 5), ("a", 9))))
    loci, record = run(tmp_path, text)
    assert [locus[:2] for locus in loci] == [("a", 0), ("a", 8), ("b", 0), ("b", 4)]
    assert not record.is_sorted


def test_files_larger_than_a_block_and_than_memory(tmp_path, monkeypatch):
    """Blocks of a few rows and a spill on disk give what one block in memory gives."""
    rows = [f"chr{1 + number % 3} {5 * number + 1} {5 * number + 1} 25 1 3" for number in range(2000)]
    sorted_rows = sorted(rows, key=lambda row: row.split()[0])
    expected, whole = run(tmp_path, table(*rows))
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 700)
    monkeypatch.setattr(spill_module, "MEMORY_BYTES", 100)
    loci, record = run(tmp_path, table(*rows))
    assert loci == expected
    assert record == whole
    spaced, record = run(tmp_path, "\n".join(sorted_rows))  # spaces, and no newline at the end
    assert spaced == expected
    assert record.is_sorted
    assert [path.name for path in tmp_path.iterdir()] == ["input.txt"]


def test_all_rows_dropped_is_a_warning(tmp_path):
    loci, record = run(tmp_path, table("chr1 11 11 0 0 0", "chr1 12 12 100 3 0"), include=("chr2",))
    assert loci == []
    assert record.coverage["mean"] is None
    assert record.warnings[0].startswith("all 2 rows were dropped (contig 2)")
    _, record = run(tmp_path, table("chr1 11 11 0 0 0"))
    assert record.dropped["uncovered"] == 1
    assert len(record.warnings) == 1


# ------------------------------------------------------------------------------------------------------------- percent


def test_percent_contradicting_some_rows_is_a_warning_and_counts_are_used(tmp_path):
    text = table("chr1 11 11 33 1 2", "chr1 21 21 66.6 2 1", "chr1 31 31 90 1 1", "chr1 41 41 7 0 0")
    loci, record = run(tmp_path, text)
    assert loci[2] == ("chr1", 30, ".", "CG", 1, 2)
    assert (record.percent_checked, record.percent_contradicting) == (3, 1)
    assert any("contradicts the counts in 1 of 3" in warning for warning in record.warnings)


def test_percent_contradicting_most_rows_is_an_error(tmp_path):
    text = table("chr1 11 11 75 1 3", "chr1 21 21 66.6 1 2", "chr1 31 31 50 1 1")
    with pytest.raises(UserError, match="contradicts the counts in 2 of 3"):
        run(tmp_path, text)


# ---------------------------------------------------------------------------------------------------------- the record


def test_record_summaries(tmp_path):
    text = table("chr1 11 11 100 2 0", "chr1 21 21 50 2 2", "chr1 31 31 0 0 4", "chr1 41 41 0 0 90")
    _, record = run(tmp_path, text)
    assert record.coverage["mean"] == 25.0
    assert [record.coverage[name] for name in ("min", "median", "max")] == [2, 4, 90]
    bins = {(item["from"], item["to"]): item["loci"] for item in record.coverage["histogram"]}
    assert bins[2, 2] == 1
    assert bins[3, 4] == 2
    assert bins[50, 99] == 1
    assert record.methylation == {
        "CG": {"loci": 4, "reads": 100, "methylated_reads": 4, "level": 0.04, "mean_locus_level": 0.375}
    }


def test_settings_from_the_configuration_section():
    section = {
        "context": "CG",
        "modification": "h",
        "calls": {"modified_from": 0.9, "unmodified_to": 0.2, "most_probable_from": 0.6, "bad_reads": "skip"},
        "reference": "genome.fa",
        "array": {"pseudo_reads": 100, "manifest": "epic.tsv"},
        "merge_strands": False,
        "contigs": {"include": ["chr*"], "exclude": ["chrM"], "rename": "add_chr"},
        "coverage": {"min": 3, "max": 90},
    }
    limits = (3, 90, 0.9, 0.2, 0.6, "genome.fa")
    expected = IngestSettings(
        ("CG",),
        "h",
        False,
        ("chr*",),
        ("chrM",),
        *limits,
        pseudo_reads=100,
        array_manifest="epic.tsv",
        rename="add_chr",
        bad_reads="skip",
    )
    assert ingest_settings(section) == expected
    assert ingest_settings({**section, "context": ["CG", "CHH"]}).contexts == ("CG", "CHH")
    assert ingest_settings({**section, "modification": "a"}).contexts == (".",)
    assert ingest_settings(section, "2").haplotype == "2"
    with pytest.raises(UserError, match=r"haplotype is 'HP2' \(expected all, unphased, or a whole number"):
        ingest_settings(section, "HP2")


def test_a_text_file_is_taken_to_be_of_the_haplotype_that_the_sheet_says(tmp_path):
    rows = table("chr1 11 11 50 1 1")
    assert run(tmp_path, rows, haplotype="1")[0] == run(tmp_path, rows)[0]
    with pytest.raises(UserError, match=r"beta_matrix has no haplotypes, but haplotype is '1' \(expected all\)"):
        run(tmp_path, table("contig position s", "chr1 11 0.5"), haplotype="1", pseudo_reads=10, sample="s")


def test_only_formats_that_name_adenines_are_asked_for_them(tmp_path):
    with pytest.raises(UserError, match=r"bismark_cov counts cytosines, but loci\.modification is 'a'"):
        run(tmp_path, table("chr1 11 11 50 1 1"), modification="a", contexts=(".",))
    rows = [modkit(10, "a", "+", 75.0, 3, 4), modkit(11, "m", "+", 50.0, 2, 4), modkit(12, "a", "-", 0.0, 0, 5)]
    loci, record = run(tmp_path, table(*rows), modification="a", contexts=(".",))
    assert loci == [("chr1", 10, "+", ".", 3, 4), ("chr1", 12, "-", ".", 0, 5)]
    assert record.dropped["other_modification"] == 1


# --------------------------------------------------------------------------------------------------------- compression


def test_compression_is_seen_in_the_content_not_the_name(tmp_path):
    import pysam

    text = table(*(f"chr1 {10 * number + 1} {10 * number + 1} 50 1 1" for number in range(5000)))
    half = text.index("\n", len(text) // 2) + 1
    plain, zipped, members, blocked = (tmp_path / name for name in ("a.gz", "b.txt", "c.cov", "d.cov"))
    plain.write_text(text)
    zipped.write_bytes(gzip.compress(text.encode()))
    members.write_bytes(gzip.compress(text[:half].encode()) + gzip.compress(text[half:].encode()))
    with pysam.BGZFile(str(blocked), "wb") as file:
        file.write(text.encode())
    expected, _ = run_file(plain)
    assert len(expected) == 5000
    for path in (zipped, members, blocked):
        assert detect(path) == "bismark_cov"
        assert run_file(path)[0] == expected


def test_comments_blank_lines_and_line_ends_of_windows(tmp_path):
    text = "#chrom\tstart\n\n" + table("chr1 11 11 50 1 1") + "\n" + table("chr1 21 21 100 2 0")
    expected, _ = run(tmp_path, text)
    assert [locus[1] for locus in expected] == [10, 20]
    assert run(tmp_path, text.replace("\n", "\r\n"))[0] == expected
    assert run(tmp_path, text.replace("\t", "  ").replace("\n", "  \r\n"))[0] == expected
    assert run(tmp_path, "\ufeff" + table("chr1 11 11 50 1 1"))[0] == expected[:1]
