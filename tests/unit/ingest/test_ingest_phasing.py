"""Reads of one haplotype: what their tags HP and PS say, and where phase sets meet."""

from __future__ import annotations

import random
from array import array
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pysam
import pytest
from bam_cases import make_settings, read_of, run, write_bam
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import DATA
from test_ingest_bismark_bam import bisulfite

from epivi.ingest import alignments
from epivi.ingest.read import ingest

FAULTS = DATA / "faults"
needs_data = pytest.mark.skipif(not FAULTS.is_dir(), reason="the small inputs beside the repository are absent")
MODIFIED, UNMODIFIED = 250, 2


def cpg_read(start: int, name: str, is_modified: bool, **tags) -> pysam.AlignedSegment:
    """One CpG, two bases after the start."""
    calls = [("MM", "C+m?,0;"), ("ML", array("B", [MODIFIED if is_modified else UNMODIFIED]))]
    return read_of("TTCGT", "5M", start, name=name, tags=[*calls, *tags.items()])


@needs_data
def test_labels_of_haplotypes():
    """HP of 1, 2, 0, none, the text "1", and 3: each read counts for one label, and 0 is none."""
    of_label = {haplotype: run(FAULTS / "hp.bam", make_settings(haplotype=haplotype)) for haplotype in
                ("1", "2", "3", "unphased", "all")}  # fmt: skip
    reads = {haplotype: {locus[5] for locus in loci} for haplotype, (loci, _) in of_label.items()}
    assert reads == {"1": {2}, "2": {1}, "3": {1}, "unphased": {2}, "all": {6}}
    dropped = {haplotype: record.reads_dropped for haplotype, (_, record) in of_label.items()}
    assert dropped["1"] == {"other_haplotype": 2, "unphased": 2}
    assert dropped["unphased"] == {"other_haplotype": 4}
    assert dropped["all"] == {}


@pytest.mark.parametrize("label", ["H1", "-1", -1, 1.0, array("B", [1]), "01x", ""])
def test_a_label_that_is_no_number_is_named(tmp_path, label):
    reads = [cpg_read(10, "good", True, HP=1), cpg_read(10, "bad", True, HP=label)]
    path = write_bam(tmp_path / "a.bam", reads)
    for haplotype in ("1", "unphased"):
        loci, record = run(path, make_settings(haplotype=haplotype))
        assert [locus[5] for locus in loci] == ([1] if haplotype == "1" else [])
        assert record.reads_dropped["unreadable_phase"] == 1
        assert any("1 reads have a tag HP or PS that is no whole number" in text for text in record.warnings)
    assert run(path, make_settings())[0][0][5] == 2


def test_a_phase_set_that_is_no_number_is_named(tmp_path):
    reads = [cpg_read(10, "good", True, HP=1, PS="7"), cpg_read(10, "bad", True, HP=1, PS="block_7")]
    loci, record = run(write_bam(tmp_path / "a.bam", reads), make_settings(haplotype="1"))
    assert ([locus[5] for locus in loci], record.reads_dropped) == ([1], {"unreadable_phase": 1})


@needs_data
def test_phase_sets_of_opposite_numbers_are_not_added():
    """Two sets of equal size over the same CpGs: the one with the smaller number counts in both haplotypes."""
    for haplotype, methylated in (("1", 1), ("2", 0)):
        loci, record = run(FAULTS / "ps.bam", make_settings(haplotype=haplotype, merge_strands=False))
        assert {locus[4:] for locus in loci} == {(methylated, 1)}
        assert record.calls_dropped == {"other_phase_set": len(loci)}
        assert any("of 2 phase sets on 1 contigs" in text for text in record.warnings)
    assert {locus[4:] for locus in run(FAULTS / "ps.bam", make_settings())[0]} == {(2, 4)}


def test_both_haplotypes_come_of_one_phase_set(tmp_path):
    """Haplotype 1 has most reads in set 10, haplotype 2 in set 60, which is the larger of both together."""
    sets = [(1, 10, True)] * 2 + [(1, 60, False)] + [(2, 10, False)] + [(2, 60, True)] * 3
    reads = [cpg_read(10, f"r{n}", state, HP=label, PS=number) for n, (label, number, state) in enumerate(sets)]
    path = write_bam(tmp_path / "a.bam", reads)
    assert run(path, make_settings(haplotype="1"))[0] == [("chr1", 12, "+", "CG", 0, 1)]
    assert run(path, make_settings(haplotype="2"))[0] == [("chr1", 12, "+", "CG", 3, 3)]
    assert run(path, make_settings(haplotype="1"))[1].calls_dropped == {"other_phase_set": 2}


def test_the_strands_of_a_cpg_come_of_one_phase_set(tmp_path):
    """A read that starts at the G belongs to the CpG too, and the set with more reads takes both strands."""
    first = cpg_read(10, "r0", True, HP=1, PS=10)
    others = [
        read_of("GTTTT", "5M", 13, flag=16, name=f"r{number}",
                tags=[("MM", "C+m?,0;"), ("ML", array("B", [UNMODIFIED])), ("HP", 1), ("PS", 60)])
        for number in (1, 2)
    ]  # fmt: skip
    fasta = tmp_path / "genome.fa"
    fasta.write_text(">chr1\n" + "T" * 12 + "CG" + "T" * 86 + "\n")
    pysam.faidx(str(fasta))
    path = write_bam(tmp_path / "a.bam", [first, *others], {"chr1": 100})
    loci, record = run(path, make_settings(haplotype="1", reference=str(fasta)))
    assert loci == [("chr1", 12, "+", "CG", 0, 2)]
    assert record.calls_dropped == {"other_phase_set": 1}


# ------------------------------------------------------------------------------------------------------- random reads


def slow_haplotype(reads: list[pysam.AlignedSegment], haplotype: int) -> tuple[list[tuple], int]:
    """Loci of + strand CpGs by looking at one locus after the other, and the calls of sets that do not count."""
    phased = [read for read in reads if read.get_tag("HP")]
    spans: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for read in phased:
        number = read.get_tag("PS") if read.has_tag("PS") else -1
        for position in range(read.reference_start - 1, read.reference_end):
            spans[read.reference_id, position][number] += 1
    loci: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    n_other = 0
    for read in phased:
        if read.get_tag("HP") != haplotype:
            continue
        calls = next(iter(read.modified_bases.values())) if read.modified_bases else []
        for place, level in calls:
            if read.query_sequence[place + 1 : place + 2] != "G":
                continue
            key = (read.reference_id, read.reference_start + place)
            sets = spans[key]
            winner = min(sets, key=lambda number: (-sets[number], number))
            if winner != (read.get_tag("PS") if read.has_tag("PS") else -1):
                n_other += 1
            else:
                loci[key][0] += level > 128
                loci[key][1] += 1
    rows = [(f"chr{contig + 1}", position, "+", "CG", *loci[contig, position]) for contig, position in sorted(loci)]
    return rows, n_other


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 30),
    width=st.sampled_from((1, 7, 40, 1 << 23)),
    buffered=st.sampled_from((1, 50, 1 << 20)),
    haplotype=st.sampled_from((1, 2)),
)
def test_random_phase_sets(tmp_path, monkeypatch, seed, width, buffered, haplotype):
    """Beside the slow method, and by any number of processes."""
    generator = random.Random(seed)
    reads = []
    for number in range(60):
        sequence = "".join(generator.choices(("CG", "A"), k=generator.randint(3, 30)))
        levels = generator.choices((MODIFIED, UNMODIFIED), k=sequence.count("C"))
        tags = [
            ("MM", f"C+m?{',0' * len(levels)};"),
            ("ML", array("B", levels)),
            ("HP", generator.choice((0, 1, 1, 2))),
        ]
        if generator.random() < 0.9:
            tags.append(("PS", generator.choice((1, 2, 2**31 - 1))))
        start, contig = generator.randint(0, 150), generator.randint(0, 1)
        reads.append(read_of(sequence, f"{len(sequence)}M", start, contig=contig, name=f"r{number}", tags=tags))
    reads.sort(key=lambda read: (read.reference_id, read.reference_start))
    path = write_bam(tmp_path / "a.bam", reads, {"chr1": 400, "chr2": 400})
    pysam.index(str(path))
    monkeypatch.setattr(alignments, "PARALLEL_READS", 1)
    monkeypatch.setattr(alignments, "STRETCH_BASES", width)
    monkeypatch.setattr(alignments, "BUFFERED_CALLS", buffered)
    monkeypatch.setattr(alignments, "worker_processes", lambda n: ThreadPoolExecutor(1))
    options = make_settings(haplotype=str(haplotype))
    loci, record = run(path, options)
    expected, n_other = slow_haplotype(reads, haplotype)
    assert loci == expected
    # A call whose neighbour is beyond the read has no context, and its set may be another's too.
    assert record.calls_dropped.get("other_phase_set", 0) >= n_other
    written: list = []
    record_of_two = ingest(path, "s", options, lambda contig, counts: written.extend(
        zip([contig] * len(counts.pos0), counts.pos0.tolist(), counts.meth.tolist(), counts.total.tolist(), strict=True)
    ), spill_directory=tmp_path, threads=2)  # fmt: skip
    assert written == [(locus[0], locus[1], *locus[4:]) for locus in expected]
    assert record_of_two == record


@pytest.mark.parametrize("threads", [1, 2])
def test_phase_sets_of_bisulfite_reads(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(alignments, "PARALLEL_READS", 1)
    monkeypatch.setattr(alignments, "STRETCH_BASES", 30)
    monkeypatch.setattr(alignments, "worker_processes", lambda n: ThreadPoolExecutor(1))
    reads = [bisulfite(letter * 20, start) for letter, start in (("Z", 10), ("z", 25), ("z", 26))]
    for number, (read, phase_set) in enumerate(zip(reads, (10, 60, 60), strict=True)):
        read.query_name = f"r{number}"
        read.set_tag("HP", 1)
        read.set_tag("PS", phase_set)
    path = write_bam(tmp_path / "a.bam", reads)
    pysam.index(str(path))
    loci: list = []

    def write(_, counts):
        loci.extend(zip(counts.pos0.tolist(), counts.meth.tolist(), counts.total.tolist(), strict=True))

    options = make_settings(haplotype="1", merge_strands=False)
    record = ingest(path, "s", options, write, spill_directory=tmp_path, threads=threads)
    # The second set has two reads from 25 on, of which one starts at 26.
    of_first, of_both = [(place, 1, 1) for place in range(10, 25)], [(place, 0, 2) for place in range(26, 45)]
    assert loci == [*of_first, (25, 0, 1), *of_both, (45, 0, 1)]
    assert record.calls_dropped == {"other_phase_set": 5}
