"""A BAM file read in stretches by several processes gives what one process gives, whatever the stretches."""

from __future__ import annotations

import logging
import os
import random
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pysam
import pytest
from bam_cases import make_settings, read_of, write_bam
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ingest_bismark_bam import CONTEXTS, PAIRED, bisulfite, random_fragment

from epivi.base.errors import UserError
from epivi.ingest import alignments
from epivi.ingest.alignments import Stretch
from epivi.ingest.qc import QcRecord
from epivi.ingest.read import ingest

CONTIGS = {"chr1": 400, "chr2": 90, "chr3": 500}
UNMAPPED = 4


def run(path: Path, options: Any, threads: int, format_name: str = "auto") -> tuple[list, QcRecord]:
    written: list = []

    def write(contig, loci):
        written.append((contig, *(column.tolist() for column in loci)))

    record = ingest(path, "s", options, write, format_name=format_name, spill_directory=path.parent, threads=threads)
    return written, record


def indexed(path: Path, reads: list[pysam.AlignedSegment]) -> Path:
    order = sorted(reads, key=lambda read: (read.reference_id < 0, read.reference_id, read.reference_start))
    write_bam(path, order, CONTIGS)
    pysam.index(str(path))
    return path


def modified_reads(random: random.Random, n_reads: int) -> list[pysam.AlignedSegment]:
    """Reads of up to a hundred bases on three contigs, some of them unmapped, duplicates or without tags."""
    reads = []
    for number in range(n_reads):
        sequence = "".join(random.choices("ACGT", weights=(1, 3, 3, 1), k=random.randint(5, 100)))
        sequenced = sequence.count("C") if (flag := random.choice([0] * 8 + [0x400, UNMAPPED])) in (0, 0x400) else 0
        calls = random.randint(0, sequenced)
        tags = [("MM", f"C+m?{',0' * calls};"), ("ML", array("B", random.choices((3, 120, 250), k=calls)))]
        contig = random.randrange(3)
        start = random.randrange(list(CONTIGS.values())[contig] - 20)
        if random.random() < 0.1:
            tags = []
        if random.random() < 0.5:
            tags += [("HP", random.randint(1, 2)), ("PS", start // 100)]
        if flag == UNMAPPED and random.random() < 0.5:
            contig = start = -1
        read = read_of(sequence, f"{len(sequence)}M", start, flag=flag, contig=contig, name=f"r{number}", tags=tags[:])
        reads.append(read)
    return reads


@pytest.fixture
def no_minimum(monkeypatch):
    monkeypatch.setattr(alignments, "PARALLEL_READS", 1)


@pytest.fixture
def in_this_process(monkeypatch, no_minimum):
    """Jobs on a thread: random cases are many, and starting processes takes longer than they do."""
    monkeypatch.setattr(alignments, "worker_processes", lambda n: ThreadPoolExecutor(1))


@pytest.mark.parametrize("haplotype", ["all", "2", "unphased"])
def test_two_processes(tmp_path, no_minimum, haplotype):
    path = indexed(tmp_path / "reads.bam", modified_reads(random.Random(1), 400))
    options = make_settings(haplotype=haplotype)
    expected = run(path, options, 1)
    assert expected[1].reads_read == 400
    assert expected[1].loci_written > 100
    assert run(path, options, 2) == expected


RANDOM = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
STRETCHES = {
    "seed": st.integers(0, 1 << 30),
    "width": st.sampled_from((1, 7, 40, 1 << 23)),
    "threads": st.sampled_from((2, 9)),
}


@RANDOM
@given(**STRETCHES, haplotype=st.sampled_from(("all", "1", "unphased")), buffered=st.sampled_from((1, 50, 1 << 20)))
def test_random_modified_reads(tmp_path, monkeypatch, in_this_process, seed, width, threads, haplotype, buffered):
    monkeypatch.setattr(alignments, "STRETCH_BASES", width)
    monkeypatch.setattr(alignments, "BUFFERED_CALLS", buffered)
    path = indexed(tmp_path / "reads.bam", modified_reads(random.Random(seed), 60))
    options = make_settings(haplotype=haplotype, contexts=CONTEXTS)
    assert run(path, options, threads, "modbam") == run(path, options, 1, "modbam")


@RANDOM
@given(**STRETCHES, n_fragments=st.integers(1, 25), n_names=st.sampled_from((2, 100)))
def test_random_fragments(tmp_path, monkeypatch, in_this_process, seed, width, threads, n_fragments, n_names):
    """Mates that overlap stand in one stretch or in two; names may even be those of several fragments."""
    monkeypatch.setattr(alignments, "STRETCH_BASES", width)
    generator = random.Random(seed)
    reads = [read for number in range(n_fragments) for read in random_fragment(generator, f"r{number % n_names}")]
    path = indexed(tmp_path / "reads.bam", reads)
    options = make_settings(contexts=CONTEXTS, merge_strands=False)
    assert run(path, options, threads, "bismark_bam") == run(path, options, 1, "bismark_bam")


def test_mates_on_both_sides_of_a_boundary(tmp_path, monkeypatch, in_this_process):
    """Read 2 of the first fragment is beyond the stretch, and its calls on what read 1 covers count once."""
    monkeypatch.setattr(alignments, "STRETCH_BASES", 20)
    first, second = (
        bisulfite("Z" * 15, start, flag=PAIRED | flag, mate=mate) for start, flag, mate in ((10, 64, 22), (22, 128, 10))
    )
    path = indexed(tmp_path / "reads.bam", [first, second])
    written, record = run(path, make_settings(merge_strands=False), 2)
    assert written == [("chr1", list(range(10, 37)), [0] * 27, [0] * 27, [1] * 27, [1] * 27)]
    assert record.calls_dropped == {"mate_overlap": 3}


def test_jobs_cover_every_contig_with_reads_once(tmp_path, monkeypatch, no_minimum):
    monkeypatch.setattr(alignments, "STRETCH_BASES", 100)
    path = indexed(tmp_path / "reads.bam", [bisulfite("Z"), bisulfite("Z", 450)] + [bisulfite("Z", 480)] * 3)
    source = alignments.open_bam(path)._replace(threads=2)
    with alignments.opened_bam(source) as bam:
        plan = alignments.plan_of(source, bam)
    assert plan is not None
    assert plan.n_reads == 5
    stretches = [stretch for job in plan.jobs for stretch in job]
    assert stretches[-1] == alignments.UNPLACED
    assert [stretch.start for stretch in stretches[:-1]] == list(range(0, 400, 25))
    assert [stretch.stop for stretch in stretches[:-2]] == [stretch.start for stretch in stretches[1:-1]]
    assert stretches[-2] == Stretch("chr1", 375, alignments.CONTIG_END)


def test_many_small_contigs_share_a_job(tmp_path, monkeypatch, no_minimum):
    contigs = {f"s{number}": 10 for number in range(200)}
    path = write_bam(tmp_path / "reads.bam", [read_of("ACG", "3M", contig=number) for number in range(200)], contigs)
    pysam.index(str(path))
    source = alignments.open_bam(path)._replace(threads=2)
    with alignments.opened_bam(source) as bam:
        plan = alignments.plan_of(source, bam)
    assert [sum(len(job) for job in plan.jobs), len(plan.jobs)] == [201, 17]


def test_without_an_index_one_process_reads_and_says_so(tmp_path, no_minimum, caplog):
    path = indexed(tmp_path / "reads.bam", modified_reads(random.Random(2), 30))
    expected = run(path, make_settings(), 2)
    assert not caplog.records
    Path(f"{path}.bai").unlink()
    with caplog.at_level(logging.INFO):
        assert run(path, make_settings(), 2) == expected
        assert run(path, make_settings(), 1) == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: has no index (.bai or .csi), so that one process reads it"
    ]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("left_out", [slice(-5, None), slice(5), slice(0, None, 2)])
@pytest.mark.parametrize("is_older", [True, False])
def test_an_index_of_another_file_is_named_by_any_number(tmp_path, in_this_process, threads, left_out, is_older):
    reads = modified_reads(random.Random(3), 300)
    path = indexed(tmp_path / "reads.bam", reads)
    index = Path(f"{path}.bai")
    stale = index.read_bytes()
    others = list(reads)
    del others[left_out]
    indexed(path, others)
    index.write_bytes(stale)
    written = path.stat().st_mtime + (-10 if is_older else 10)
    os.utime(index, (written, written))
    with pytest.raises(UserError) as caught:
        run(path, make_settings(), threads)
    older = " and is older" if is_older else ""
    assert str(caught.value).startswith(f"{path}: the index reads.bam.bai does not belong to this file{older} (")
    assert str(caught.value).endswith("; expected the index of this file: index it again, or remove the index)")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_right_index_with_an_older_time_is_believed(tmp_path, in_this_process, threads):
    """Copies and downloads have the time of whichever came last."""
    path = indexed(tmp_path / "reads.bam", modified_reads(random.Random(3), 300))
    expected = run(path, make_settings(), threads)
    os.utime(f"{path}.bai", (0, 0))
    assert run(path, make_settings(), threads) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_bad_read_is_named_by_any_number(tmp_path, monkeypatch, in_this_process, threads):
    monkeypatch.setattr(alignments, "STRETCH_BASES", 30)
    reads = modified_reads(random.Random(4), 100)
    bad = [
        read_of("ACGT", "4M", start, name=f"bad{start}", tags=[("MM", "C+m,9;"), ("ML", [1])]) for start in (301, 160)
    ]
    path = indexed(tmp_path / "reads.bam", reads + bad)
    with pytest.raises(UserError, match=r"read 'bad160': tag MM"):
        run(path, make_settings(), threads)


def test_reads_without_tags_in_all_stretches_are_an_error(tmp_path, in_this_process):
    path = indexed(tmp_path / "reads.bam", [read_of("ACG", "3M", start) for start in (5, 105, 205)])
    with pytest.raises(UserError, match=r"none of 3 reads has the tag MM"):
        run(path, make_settings(), 2, "modbam")


@pytest.mark.parametrize("threads", [1, 2])
def test_reads_of_several_samples_in_one_file_are_a_finding(tmp_path, in_this_process, threads):
    """By the groups that its reads name; a header may speak of more."""
    reads = [
        read_of("ACGTTG", "6M", start, name=f"r{start}", tags=[("MM", "C+m?,0;"), ("ML", array("B", [250]))])
        for start in range(10, 250, 6)
    ]

    def record_of(samples: dict[str, str], group_of: Callable[[int], str | None]) -> QcRecord:
        for number, read in enumerate(reads):
            read.set_tag("RG", group_of(number))
        path = write_bam(tmp_path / "a.bam", reads, groups=samples)
        pysam.index(str(path))
        return ingest(path, "s", make_settings(), lambda *_: None, spill_directory=tmp_path, threads=threads)

    two = {"1": "mother", "2": "father", "3": "father"}
    record = record_of(two, lambda number: "123"[number % 3])
    assert record.reads_by_sample == {"mother": 14, "father": 26}
    (text,) = [text for text in record.warnings if "read groups" in text]
    assert text == (
        "the reads are of 2 samples by their read groups (father 26, mother 14), and all count for this one: are they"
        " of one individual?"
    )
    assert record_of(two, lambda number: "23"[number % 2]).reads_by_sample == {"father": 40}
    assert record_of({"1": "one", "2": "one"}, lambda number: "12"[number % 2]).reads_by_sample == {}
    for quiet in (record_of(two, lambda number: "1"), record_of(two, lambda number: None)):
        assert not any("read groups" in text for text in quiet.warnings)
