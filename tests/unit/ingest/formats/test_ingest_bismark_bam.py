"""Bisulfite BAM with the calls of Bismark: public reports row for row, mates, and the counts by a slow method."""

from __future__ import annotations

import gzip
import random
import re
from array import array
from pathlib import Path

import pysam
import pytest
from bam_cases import Locus, make_settings, read_of, run, slow_bismark, write_bam
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import DATA

from epivi.base.errors import UserError
from epivi.ingest import alignments
from epivi.ingest.formats import bismark_bam
from epivi.ingest.read import detect

EPIALLELER = DATA / "counts" / "epialleleR"
needs_data = pytest.mark.skipif(not EPIALLELER.is_dir(), reason="the public test data beside the repository are absent")
CONTEXTS = ("CG", "CHG", "CHH")
PAIRED, PROPER, REVERSE, MATE_REVERSE, FIRST, SECOND = 1, 2, 16, 32, 64, 128
READ_1 = PAIRED | PROPER | MATE_REVERSE | FIRST
READ_2 = PAIRED | PROPER | REVERSE | SECOND


def bisulfite(
    xm: str,
    start: int = 10,
    *,
    xg: str = "CT",
    flag: int = 0,
    name: str = "r1",
    cigar: str = "",
    mate: int | None = None,
) -> pysam.AlignedSegment:
    """A read with calls; the bases do not matter."""
    return read_of(
        "N" * len(xm), cigar or f"{len(xm)}M", start, flag=flag, name=name,
        tags=[("XM", xm), ("XR", "CT"), ("XG", xg)], mate=None if mate is None else (0, mate),
    )  # fmt: skip


def loci_of(tmp_path: Path, *reads: pysam.AlignedSegment, **options) -> tuple[list[Locus], dict[str, int]]:
    path = write_bam(tmp_path / "reads.bam", reads)
    loci, record = run(path, make_settings(**{"merge_strands": False, "contexts": CONTEXTS, **options}))
    counted = record.calls_read - sum(record.calls_dropped.values())
    assert counted == sum(locus[5] for locus in loci)
    return loci, record.calls_dropped


def report(path: Path) -> list[Locus]:
    rows = [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return [(row[0], int(row[1]) - 1, row[2], row[5], int(row[3]), int(row[3]) + int(row[4])) for row in rows]


@needs_data
@pytest.mark.parametrize("batch", [1, 7, 1 << 13])
@pytest.mark.parametrize(
    ("bam", "cx_report", "n_rows"),
    [
        ("dragen-pe-namesort-xg-xm.bam", "dragen-pe.CX_report.txt.gz", 3832),
        ("dragen-se-unsort-xg-xm.bam", "dragen-se.CX_report.txt.gz", 3243),
    ],
)
def test_the_reports_row_for_row(tmp_path, monkeypatch, bam, cx_report, n_rows, batch):
    monkeypatch.setattr(bismark_bam, "BATCH_FRAGMENTS", batch)
    monkeypatch.setattr(alignments, "BUFFERED_CALLS", 100 * batch)
    path = tmp_path / "sorted.bam"
    pysam.sort("-o", str(path), str(EPIALLELER / bam))
    assert detect(path) == "bismark_bam"
    options = make_settings(contexts=CONTEXTS, merge_strands=False)
    loci, record = run(path, options)
    expected = report(EPIALLELER / cx_report)
    assert len(expected) == n_rows
    assert loci == sorted(expected)
    assert (record.layout, record.reads_dropped) == ("context and strand in the tags", {})
    merged, _ = run(path, make_settings())
    assert sum(locus[5] for locus in merged) == sum(locus[5] for locus in expected if locus[3] == "CG")


@needs_data
def test_a_file_sorted_by_name_is_refused():
    path = EPIALLELER / "dragen-pe-namesort-xg-xm.bam"
    with pytest.raises(UserError, match=r"the header's sort order \(SO\) is 'unsorted' \(expected 'coordinate'"):
        run(path, make_settings())


# ------------------------------------------------------------------------------------------------------- one rule each


def test_letters_and_strands(tmp_path):
    loci, dropped = loci_of(tmp_path, bisulfite("zZxXhHuU."), bisulfite("Zz", 40, xg="GA", flag=16, name="r2"))
    assert loci == [
        ("chr1", 10, "+", "CG", 0, 1),
        ("chr1", 11, "+", "CG", 1, 1),
        ("chr1", 12, "+", "CHG", 0, 1),
        ("chr1", 13, "+", "CHG", 1, 1),
        ("chr1", 14, "+", "CHH", 0, 1),
        ("chr1", 15, "+", "CHH", 1, 1),
        ("chr1", 40, "-", "CG", 1, 1),
        ("chr1", 41, "-", "CG", 0, 1),
    ]
    assert dropped == {"unknown_context": 2}


def test_strands_of_a_cpg_are_merged(tmp_path):
    reads = (bisulfite("Z", 10), bisulfite("z", 11, xg="GA", name="r2"))
    assert loci_of(tmp_path, *reads, merge_strands=True) == ([("chr1", 10, "+", "CG", 1, 2)], {})
    # A minus-strand CpG on the first base has no partner.
    assert loci_of(tmp_path, bisulfite("z", 0, xg="GA"), merge_strands=True) == ([], {"unknown_context": 1})


def test_what_read_1_covers_counts_once(tmp_path):
    """Read 2 repeats the call at 12, contradicts read 1 at 13, calls what read 1 has a dot for, and adds that at 15."""
    first = bisulfite("..ZZ.", 10, flag=READ_1, mate=12)
    second = bisulfite("ZzZZ", 12, flag=READ_2, mate=10)
    expected = [("chr1", 12, "+", "CG", 1, 1), ("chr1", 13, "+", "CG", 1, 1), ("chr1", 15, "+", "CG", 1, 1)]
    assert loci_of(tmp_path, first, second) == (expected, {"mate_overlap": 3})
    # Read 2 may come first in the file, and start with read 1.
    second = bisulfite("..zzZ", 10, flag=READ_2, mate=10)
    first = bisulfite("..ZZ", 10, flag=READ_1, mate=10)
    expected = [("chr1", 12, "+", "CG", 1, 1), ("chr1", 13, "+", "CG", 1, 1), ("chr1", 14, "+", "CG", 1, 1)]
    assert loci_of(tmp_path, second, first) == (expected, {"mate_overlap": 2})
    # What read 1 skips by a deletion, or has inserted, it does not cover.
    first = bisulfite("Z.Z", 10, flag=READ_1, mate=11, cigar="1M1I1D1M")
    second = bisulfite("Z", 11, flag=READ_2, mate=10)
    expected = [("chr1", pos0, "+", "CG", 1, 1) for pos0 in (10, 11, 12)]
    assert loci_of(tmp_path, first, second) == (expected, {})


@pytest.mark.parametrize("batch", [1, 100])
def test_mates_that_never_come_and_mates_apart(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(bismark_bam, "BATCH_FRAGMENTS", batch)
    reads = [
        bisulfite("Z....", 10, flag=READ_1, mate=12, name="mate is left out"),
        bisulfite("Z....", 11, flag=READ_1, mate=40, name="apart"),
        bisulfite("Z....", 12, flag=READ_2 | 0x400, mate=10, name="mate is left out"),
        bisulfite("Z....", 13, flag=READ_1 | 8, mate=13, name="mate is unmapped"),
        bisulfite("Z....", 14, name="single"),
        bisulfite("Z....", 15, name="single"),
        bisulfite("Z....", 16, flag=READ_1, mate=17, name="read 1 twice"),
        bisulfite("Z....", 17, flag=READ_1, mate=16, name="read 1 twice"),
        bisulfite("Z....", 40, flag=READ_2, mate=11, name="apart"),
    ]
    loci, dropped = loci_of(tmp_path, *reads)
    assert loci == [("chr1", pos0, "+", "CG", 1, 1) for pos0 in (10, 11, 13, 14, 15, 16, 17, 40)]
    assert dropped == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"XM": "Z."}, "tag XM is 'Z.' (expected a letter for each of the 3 bases)"),
        ({"XM": "Zq."}, "tag XM is 'Zq.' (expected letters among .zxhuZXHU)"),
        ({"XM": 7}, "tag XM is 7 (expected a letter for each of the 3 bases)"),
        ({"XG": None}, "tag XG is 'absent' (expected CT or GA)"),
        ({"XG": "AG"}, "tag XG is 'AG' (expected CT or GA)"),
        ({"XG": array("B", [1])}, "tag XG is array('B', [1]) (expected CT or GA)"),
    ],
)
def test_malformed_tags(tmp_path, change, message):
    read = bisulfite("Z..", name="read/7")
    for tag, value in change.items():
        read.set_tag(tag, value)
    path = write_bam(tmp_path / "bad.bam", [read])
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: read {chr(39)}read/7{chr(39)}: {message}')}$"):
        run(path, make_settings(), "bismark_bam")


def test_numbers_in_tags_of_the_same_names_are_no_calls(tmp_path):
    """Bowtie 2 counts mismatches and gaps in XM and XG."""
    path = write_bam(tmp_path / "other.bam", [read_of("ACG", "3M", tags=[("XM", 1), ("XG", 0)])])
    with pytest.raises(UserError, match="none of the first 1 reads has calls"):
        run(path, make_settings())


def test_reads_of_several_samples_in_one_file_are_a_finding(tmp_path):
    reads = [bisulfite(".Z..", start, name=f"r{start}") for start in range(10, 30)]
    for number, read in enumerate(reads):
        read.set_tag("RG", "ab"[number % 2])
    path = write_bam(tmp_path / "two.bam", reads, groups={"a": "Col", "b": "Ler"})
    _, record = run(path, make_settings())
    assert record.reads_by_sample == {"Col": 10, "Ler": 10}
    assert any("samples by their read groups (Col 10, Ler 10)" in text for text in record.warnings)


def test_reads_without_the_tag_are_left_out_by_name(tmp_path):
    path = write_bam(tmp_path / "some.bam", [bisulfite("Z.."), read_of("ACG", "3M", 20)])
    loci, record = run(path, make_settings())
    assert loci == [("chr1", 10, "+", "CG", 1, 1)]
    assert (record.reads_read, record.reads_dropped) == (2, {"no_tag": 1})
    with pytest.raises(UserError, match=r"none of 1 reads has the tag XM"):
        run(write_bam(tmp_path / "none.bam", [read_of("ACG", "3M", 20)]), make_settings(), "bismark_bam")


# -------------------------------------------------------------------------------------------------------- random reads


def random_fragment(random: random.Random, name: str) -> list[pysam.AlignedSegment]:
    """One read, or two mates of which either may be the left one; sometimes one of them is left out by its flag."""
    xg = random.choice(["CT", "GA"])
    cigars = [random_cigar(random) for _ in range(2)]
    lengths = [sum(int(n) for n, step in re.findall(r"(\d+)(.)", cigar) if step in "MIS") for cigar in cigars]
    calls = ["".join(random.choices("..zZxXhHuU", k=length)) for length in lengths]
    starts = [random.randint(0, 20) for _ in range(2)]
    if random.random() < 0.3:
        return [bisulfite(calls[0], starts[0], xg=xg, name=name, cigar=cigars[0])]
    flags = [READ_1, READ_2 | random.choice([0] * 5 + [0x400])]
    return [
        bisulfite(calls[i], starts[i], xg=xg, name=name, cigar=cigars[i], flag=flags[i], mate=starts[1 - i])
        for i in range(2)
    ]


def random_cigar(random: random.Random) -> str:
    cigar = f"{random.randint(1, 12)}M"
    for _ in range(random.randint(0, 2)):
        cigar += f"{random.randint(1, 3)}{random.choice('ID')}{random.randint(1, 6)}M"
    return random.choice(["", "2S"]) + cigar + random.choice(["", "3S"])


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.randoms(use_true_random=False),
    n_fragments=st.integers(1, 12),
    contexts=st.sampled_from([("CG",), ("CHH",), CONTEXTS]),
    batch=st.sampled_from([1, 3, 100]),
    buffered=st.sampled_from([1, 30, 1 << 20]),
    merge_strands=st.booleans(),
)
def test_random_fragments(tmp_path, monkeypatch, seed, n_fragments, contexts, batch, buffered, merge_strands):
    reads = [read for number in range(n_fragments) for read in random_fragment(seed, f"r{number}")]
    reads.sort(key=lambda read: read.reference_start)
    path = write_bam(tmp_path / "random.bam", reads)
    monkeypatch.setattr(bismark_bam, "BATCH_FRAGMENTS", batch)
    monkeypatch.setattr(alignments, "BUFFERED_CALLS", buffered)
    options = make_settings(contexts=contexts, merge_strands=merge_strands)
    loci, record = run(path, options, "bismark_bam")
    expected, fates = slow_bismark(path, options)
    assert loci == expected
    assert record.calls_read == sum(fates.values())
    assert record.calls_dropped == {reason: calls for reason, calls in fates.items() if reason != "counted"}
