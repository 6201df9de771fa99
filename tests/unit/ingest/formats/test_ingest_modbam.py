"""modBAM: the tags against published truth and htslib, the counts against a slow method, and what must fail."""

from __future__ import annotations

import gzip
import random
import re
from array import array
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
from bam_cases import COMPLEMENT, make_settings, read_of, run, slow_modbam, write_bam
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from places import DATA

from epivi.base.errors import UserError
from epivi.ingest import alignments
from epivi.ingest.alignments import BamSource
from epivi.ingest.formats import modbam
from epivi.ingest.read import detect
from epivi.quality.findings import file_findings

MODBAM = DATA / "modbam"
needs_data = pytest.mark.skipif(not MODBAM.is_dir(), reason="the public test data beside the repository are absent")
CONTEXTS = ("CG", "CHG", "CHH")


def tagged(skips: str, levels: list[int] | None, **more: int) -> list[tuple]:
    """Tags of calls; levels None leaves ML out; more: further tags."""
    tags: list[tuple] = [("MM", skips)]
    if levels is not None:
        tags.append(("ML", array("B", levels)))
    return tags + list(more.items())


def one(tmp_path: Path, sequence: str, cigar: str, tags: list[tuple], *, start: int = 10, flag: int = 0, **options):
    """Loci and record of a single read."""
    path = write_bam(tmp_path / "one.bam", [read_of(sequence, cigar, start, flag=flag, tags=tags)])
    return run(path, make_settings(merge_strands=False, **options))


# --------------------------------------------------------------------------------------------------------- public truth


def groups_of(path: Path) -> list[tuple[pysam.AlignedSegment, tuple[modbam.Group, ...]]]:
    source = BamSource(path, ())
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        return [(read, modbam.tag_groups(source, read)) for read in file.fetch(until_eof=True)]


@needs_data
@pytest.mark.parametrize("name", ["chebi", "double", "explicit", "multi", "orient"])
def test_every_call_of_the_specification(name):
    """The truth has a line for each base as sequenced: the base and its calls on SEQ's strand, then on the other."""
    shown = []
    for read, groups in groups_of(MODBAM / "hts-specs" / f"MM-{name}.sam"):
        calls = [["", ""] for _ in range(read.query_length)]
        for group in groups:
            assert group.levels is not None
            for place, levels in zip(group.positions.tolist(), group.levels.tolist(), strict=True):
                for code, level in zip(group.codes, levels, strict=True):
                    called = f"({code})" if code.isdigit() else code
                    calls[place][group.is_opposite] += f"{called}{int((level + 0.5) / 256 * 100)}"
        shown.append(calls)
    blocks = (MODBAM / "hts-specs" / f"MM-{name}.txt").read_text().rstrip("\n").split("\n\n")
    expected = [[[cell[1:] for cell in line.split("\t")] for line in block.split("\n")] for block in blocks]
    assert shown == expected
    assert sum(bool(call) for read in shown for base in read for call in base) >= 7


@needs_data
@pytest.mark.parametrize(
    "name", ["explicit", "chebi", "multi", "double", "not-all-modded", "pileup", "variants", "MNp"]
)
def test_every_call_that_htslib_finds(name):
    path = MODBAM / "htslib" / f"MM-{name}.sam"
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        reads = [read for read in file.fetch(until_eof=True) if read.has_tag("MM") or read.has_tag("Mm")]
    assert reads
    for read in reads:
        assert_as_htslib(path, read)


@needs_data
@pytest.mark.parametrize("name", ["nanomethviz/peg3.bam", "fibertools/NAPA.bam"])
def test_every_call_of_real_reads_that_htslib_finds(name):
    path = MODBAM / name
    with pysam.AlignmentFile(str(path)) as file:
        for read in list(file)[:10]:
            assert_as_htslib(path, read)


def assert_as_htslib(path: Path, read: pysam.AlignedSegment) -> None:
    """The listed calls are those of htslib, which gives places in SEQ and the strand of SEQ as sequenced."""
    found: dict[tuple, list[tuple[int, int]]] = {}
    for group in modbam.tag_groups(BamSource(path, ()), read):
        last = read.query_length - 1
        places = (last - group.positions if read.is_reverse else group.positions).tolist()
        for column, code in enumerate(group.codes):
            key = (group.base, int(group.is_opposite), int(code) if code.isdigit() else code)
            # htslib gives -1 where there is no ML.
            levels = [-1] * len(places) if group.levels is None else group.levels[:, column].tolist()
            calls = sorted(zip(places, levels, strict=True))
            if calls:
                found[key] = calls
    expected: dict[tuple, list[tuple[int, int]]] = {}
    for (base, strand, code), calls in read.modified_bases.items():
        # htslib names the strand within SEQ as stored, and the base by the one in SEQ if the tag says N.
        expected.setdefault((base, strand ^ read.is_reverse, code), []).extend(calls)
    if any(key[0] == "N" for key in found):
        found, expected = without_base(found), without_base(expected)
    assert found == {key: sorted(calls) for key, calls in expected.items() if calls}


def without_base(calls: dict[tuple, list[tuple[int, int]]]) -> dict[tuple, list[tuple[int, int]]]:
    result: dict[tuple, list[tuple[int, int]]] = {}
    for (_, strand, code), values in calls.items():
        result[strand, code] = sorted(result.get((strand, code), []) + values)
    return result


@needs_data
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MNf1", "read 'r1': tag MN is 37 (expected the length of SEQ, 36, for which MM was made)"),
        ("MNf2", "read 'r3': tag MN is 36.0 (expected a whole number)"),
        ("bounds+", "read 'r1': tag MM is 'C+m,2,2,1,4,1,0' (expected no call beyond the 15 bases C of the read)"),
        ("bounds-", "read 'r1-': tag MM is 'G-m,0,1,4,1,2,2' (expected no call beyond the 15 bases G of the read)"),
    ],
    ids=["MNf1", "MNf2", "bounds+", "bounds-"],
)
def test_what_htslib_refuses(tmp_path, name, message):
    path = as_bam(MODBAM / "htslib" / f"MM-{name}.sam", tmp_path)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {message}')}$"):
        run(path, make_settings())


@needs_data
def test_reads_without_tags_among_others(tmp_path):
    path = as_bam(MODBAM / "htslib" / "MM-not-all-modded.sam", tmp_path)
    loci, record = run(path, make_settings(contexts=CONTEXTS, merge_strands=False))
    assert (record.reads_read, record.reads_dropped) == (4, {"no_tag": 2})
    assert sum(locus[5] for locus in loci) > 0
    run(as_bam(MODBAM / "htslib" / "MM-MNp.sam", tmp_path), make_settings())


def as_bam(sam: Path, folder: Path) -> Path:
    """The reads of a SAM file as a BAM file whose header says that they are sorted."""
    path = folder / f"{sam.stem}.bam"
    with pysam.AlignmentFile(str(sam), check_sq=False) as file:
        header = {**file.header.to_dict(), "HD": {"VN": "1.6", "SO": "coordinate"}}
        with pysam.AlignmentFile(str(path), "wb", header=header) as bam:
            for read in file.fetch(until_eof=True):
                # pysam copies the text of a read with its own header only.
                bam.write(pysam.AlignedSegment.from_dict(read.to_dict(), bam.header))
    return path


@needs_data
@pytest.mark.parametrize("merge_strands", [True, False])
@pytest.mark.parametrize(
    ("name", "modification"),
    [
        ("nanomethviz/peg3.bam", "m"),
        ("nanomethviz/peg3.bam", "mh"),
        ("fibertools/NAPA.bam", "m"),
        ("fibertools/NAPA.bam", "a"),
    ],
)
def test_real_reads_by_the_slow_method(tmp_path, name, modification, merge_strands, monkeypatch):
    """Nanopore reads whose tags name CpGs only, PacBio reads with 5mC, 6mA on both strands and clips."""
    path = tmp_path / "some.bam"
    with pysam.AlignmentFile(str(MODBAM / name)) as bam, pysam.AlignmentFile(str(path), "wb", template=bam) as some:
        for number, read in enumerate(bam):
            if number % (20 if "NAPA" in name else 3) == 0:
                some.write(read)
    assert detect(path) == "modbam"
    monkeypatch.setattr(alignments, "BUFFERED_CALLS", 20_000)
    contexts = (".",) if modification == "a" else ("CG",)
    options = make_settings(modification=modification, contexts=contexts, merge_strands=merge_strands)
    loci, record = run(path, options)
    expected, fates = slow_modbam(path, options)
    assert loci == expected
    assert len(loci) > 300
    assert_calls(record, fates)


def assert_calls(record, fates) -> None:
    assert record.calls_read == sum(fates.values())
    assert record.calls_dropped == {reason: calls for reason, calls in fates.items() if reason != "counted"}


# ------------------------------------------------------------------------------------------------------- one rule each


def test_probabilities_between_the_thresholds_are_ambiguous(tmp_path):
    sequence = "ACGACGACGACGA"
    levels = [255, 192, 191, 0]  # with 64 the midpoints 191.5 and 63.5 lie beyond .75 and .25
    loci, record = one(tmp_path, sequence, "13M", tagged("C+m?,0,0,0,0;", levels))
    assert loci == [("chr1", 11, "+", "CG", 1, 1), ("chr1", 14, "+", "CG", 1, 1), ("chr1", 20, "+", "CG", 0, 1)]
    assert (record.calls_read, record.calls_dropped) == (4, {"ambiguous": 1})
    loci, record = one(tmp_path, sequence, "13M", tagged("C+m?,0,0,0,0;", levels), modified_from=0.5, unmodified_to=0.5)
    assert [locus[4] for locus in loci] == [1, 1, 1, 0]
    assert record.calls_dropped == {}


@pytest.mark.parametrize(("mark", "n_unmodified"), [("", 2), (".", 2), ("?", 0)])
def test_skipped_bases_are_unmodified_or_unknown(tmp_path, mark, n_unmodified):
    loci, _ = one(tmp_path, "ACGACGACGA", "10M", tagged(f"C+m{mark},1;", [250]))
    assert [locus for locus in loci if locus[4]] == [("chr1", 14, "+", "CG", 1, 1)]
    assert len(loci) == 1 + n_unmodified
    none, record = one(tmp_path, "ACGACGACGA", "10M", tagged(f"C+m{mark};", None))
    assert len(none) == n_unmodified * 3 // 2
    assert record.reads_dropped == {}


def test_strands_of_tag_and_read(tmp_path):
    """Both strands of the CpG at 12 of the reference, from either direction of sequencing."""
    for flag, tag, strand, pos0 in (
        (0, "C+m?,0;", "+", 12),
        (0, "G-m?,0;", "-", 13),
        (16, "C+m?,0;", "-", 13),
        (16, "G-m?,0;", "+", 12),
    ):
        loci, _ = one(tmp_path, "TTCGTT", "6M", tagged(tag, [250]), flag=flag)
        assert loci == [("chr1", pos0, strand, "CG", 1, 1)]
    path = write_bam(tmp_path / "duplex.bam", [read_of("TTCGTT", "6M", 10, tags=tagged("C+m?,0;G-m?,0;", [250, 3]))])
    loci, record = run(path, make_settings())
    assert loci == [("chr1", 12, "+", "CG", 1, 2)]
    assert record.strands_merged == 1


@pytest.mark.parametrize(("modification", "expected"), [("m", [1, 0]), ("h", [0, 1]), ("a", None)])
@pytest.mark.parametrize("tag", ["C+mh?,0,0;", "C+m?,0,0;C+76792?,0,0;"])
def test_only_the_requested_modification_counts(tmp_path, tag, modification, expected):
    loci, record = one(tmp_path, "ACGACGA", "7M", tagged(tag, [250, 2, 2, 250]), modification=modification)
    if expected is None:
        assert (loci, record.reads_dropped) == ([], {"other_modification": 1})
        assert "no call of 1 reads counts (reads left out: other_modification 1" in record.warnings[0]
    else:
        assert [locus[4] for locus in loci] == expected
        assert [locus[5] for locus in loci] == [1, 1]


def by_pysam(read: pysam.AlignedSegment) -> dict[int, dict[str, float]]:
    """Probability of each code at each place of a read, as pysam has them."""
    result: dict[int, dict[str, float]] = {}
    for (_, _, code), calls in read.modified_bases.items():
        for place, level in calls:
            result.setdefault(place, {})[str(code)] = (level + 0.5) / 256
    return result


def test_both_modifications_together_and_as_modkit_counts(tmp_path):
    """Levels of 5mC and 5hmC at each of seven CpGs."""
    levels = [(250, 2), (2, 250), (101, 99), (119, 121), (2, 2), (60, 120), (110, 20)]
    tags = [("MM", f"C+mh?{',0' * 7};"), ("ML", array("B", [level for pair in levels for level in pair]))]
    path = write_bam(tmp_path / "a.bam", [read_of("ACG" * 7 + "A", "22M", 10, tags=tags)])
    (read,) = pysam.AlignmentFile(str(path))
    probabilities = [values for _, values in sorted(by_pysam(read).items())]
    assert len(probabilities) == 7

    def states(**options) -> list[int | None]:
        loci, record = run(path, make_settings(merge_strands=False, **options))
        found = {locus[1]: locus[4] for locus in loci}
        assert record.calls_read == 7 == len(found) + record.calls_dropped.get("ambiguous", 0)
        return [found.get(11 + 3 * number) for number in range(7)]

    def by_sum(values: dict[str, float]) -> int | None:
        total = values["m"] + values["h"]
        return 1 if total >= 0.75 else 0 if total <= 0.25 else None

    def by_most(values: dict[str, float], asked: str, least: float) -> int | None:
        outcomes = {"": 1 - sum(values.values()), **values}
        best = max(outcomes, key=outcomes.__getitem__)
        return None if outcomes[best] < least else int(best != "" and best in asked)

    assert states(modification="mh") == [by_sum(values) for values in probabilities] == [1, 1, 1, 1, 0, None, None]
    for asked in ("m", "h", "mh"):
        for least in (0, 0.45, 0.9):
            expected = [by_most(values, asked, least) for values in probabilities]
            assert states(modification=asked, most_probable_from=least) == expected
    assert states(modification="m", most_probable_from=0) == [1, 0, 1, 0, 0, 0, 0]
    assert states(modification="m") == [1, 0, None, None, 0, 0, None]


def test_a_base_where_one_of_two_modifications_was_not_looked_at(tmp_path):
    """5mC is called at all four CpGs, 5hmC at the first two."""
    tags = tagged("C+m?,0,0,0,0;C+h?,0,0;", [2, 100, 250, 2, 2, 100])
    loci, record = one(tmp_path, "ACGACGACGACGA", "13M", tags, modification="mh")
    assert [(locus[1], locus[4]) for locus in loci] == [(11, 0), (14, 1), (17, 1)]
    assert record.calls_dropped == {"partly_called": 1}
    implied, record = one(
        tmp_path, "ACGACGACGACGA", "13M", [("MM", "C+m?,0,0,0,0;C+h.,0,0;"), tags[1]], modification="mh"
    )
    assert [locus[4] for locus in implied] == [0, 1, 1, 0]
    assert record.calls_dropped == {}


def test_the_code_of_all_modifications_is_not_5mc(tmp_path):
    """C alone counts for the two together; beside m it counts for neither m nor, as the same reads, for both."""
    alone, both = tagged("C+C?,0;", [250]), tagged("C+m?,0;C+C?,0;", [2, 250])
    for modification in ("m", "h"):
        loci, record = one(tmp_path, "ACGA", "4M", alone, modification=modification)
        assert (loci, record.reads_dropped) == ([], {"combined_code": 1})
        assert any("loci.modification mh counts them" in text for text in record.warnings)
    assert one(tmp_path, "ACGA", "4M", alone, modification="mh")[0] == [("chr1", 11, "+", "CG", 1, 1)]
    assert one(tmp_path, "ACGA", "4M", both)[0] == [("chr1", 11, "+", "CG", 0, 1)]
    assert one(tmp_path, "ACGA", "4M", both, most_probable_from=0)[0] == [("chr1", 11, "+", "CG", 0, 1)]
    with pytest.raises(UserError, match=r"tag MM is 'C\+m; C\+C' \(expected one group that calls mh on a strand"):
        one(tmp_path, "ACGA", "4M", both, modification="mh")
    _, record = one(tmp_path, "ACGA", "4M", alone, modification="a", contexts=(".",))
    assert record.reads_dropped == {"other_modification": 1}


def test_adenines_have_no_context(tmp_path):
    loci, _ = one(tmp_path, "CATGA", "5M", tagged("A+a.,1;T-a?,0;", [250, 2]), modification="a", contexts=(".",))
    assert loci == [("chr1", 11, "+", ".", 0, 1), ("chr1", 12, "-", ".", 0, 1), ("chr1", 14, "+", ".", 1, 1)]


def test_context_is_that_of_neighbouring_aligned_bases(tmp_path):
    """C at the end, before a clip, an insertion or a deletion: the read does not say what the reference has there."""
    tags = tagged("C+m?,0;", [250])
    for sequence, cigar in (("TTC", "3M"), ("TTCGT", "3M2S"), ("TTCGTT", "3M1I2M"), ("TTCGTT", "3M1D3M")):
        loci, record = one(tmp_path, sequence, cigar, tags)
        assert (loci, record.dropped["context"]) == ([], 1)
    for sequence, context in (("TTCGT", "CG"), ("TTCTG", "CHG"), ("TTCAA", "CHH")):
        loci, _ = one(tmp_path, sequence, "3=2M", tags, contexts=CONTEXTS)
        assert loci == [("chr1", 12, "+", context, 1, 1)]
    loci, record = one(tmp_path, "TTCGT", "1S1M3I", tags)
    assert (loci, record.calls_dropped) == ([], {"not_aligned": 1})


def test_the_context_of_most_reads_holds(tmp_path):
    reads = [
        read_of(sequence, "5M", 10, name=f"r{number}", tags=tagged("C+m?,0;", [250]))
        for number, sequence in enumerate(["TTCGT", "TTCGT", "TTCAA"])
    ]
    loci, record = run(write_bam(tmp_path / "a.bam", reads), make_settings(contexts=CONTEXTS))
    assert loci == [("chr1", 12, "+", "CG", 2, 2)]
    assert record.calls_dropped == {"context_disagrees": 1}


def test_a_cpg_of_one_strand_is_not_added_to_another_context(tmp_path):
    """At 12 the + strand reads TTCAA; the - strand, of another haplotype, has a CpG there."""
    reads = [
        read_of("TTCAA", "5M", 10, name="r1", tags=tagged("C+m?,0;", [250])),
        read_of("TTCGT", "5M", 10, name="r2", flag=16, tags=tagged("C+m?,0;", [3])),
    ]
    loci, record = run(write_bam(tmp_path / "a.bam", reads), make_settings(contexts=CONTEXTS))
    assert loci == [("chr1", 12, "+", "CG", 0, 1), ("chr1", 12, "+", "CHH", 1, 1)]
    assert record.strands_merged == 0


def test_reads_left_out_by_name(tmp_path):
    good = tagged("C+m?,0;", [250])
    flags = {"supplementary": 0x800, "secondary": 0x100, "duplicate": 0x400, "qc_fail": 0x200, "unmapped": 0x4}
    reads = [read_of("TTCGT", "5M", 10, name=reason, flag=flag, tags=good, contig=0) for reason, flag in flags.items()]
    reads.append(read_of("TTCGT", "5M3H", 10, name="clipped", tags=good))
    reads.append(read_of("TTCGT", "5M3H", 10, name="clipped, tags of the whole read", tags=[*good, ("MN", 8)]))
    reads.append(read_of("TTCGT", "3H5M", 10, name="clipped, tags of what is left", tags=[*good, ("MN", 5)]))
    reads.append(read_of("TTCGT", "5M", 10, name="no tag"))
    no_sequence = read_of("TTCGT", "5M", 10, name="no sequence", tags=good)
    no_sequence.query_sequence = None
    reads.append(no_sequence)
    reads.append(read_of("TTCGT", "5M", 10, contig=1, tags=good))
    path = write_bam(tmp_path / "a.bam", reads, {"chr1": 1000, "chrM": 1000})
    loci, record = run(path, make_settings(exclude=("chrM",)))
    assert loci == [("chr1", 12, "+", "CG", 1, 1)]
    assert record.reads_read == 11
    assert record.reads_dropped == {**dict.fromkeys(flags, 1), "hard_clipped": 2, "no_tag": 1, "no_sequence": 1,
                                    "contig": 1}  # fmt: skip


def write_fasta(path: Path, sequences: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    pysam.faidx(str(path))
    return path


def test_a_reference_says_the_context(tmp_path):
    """The first read's C has no CG in the read; the second read has a C where the reference has T."""
    fasta = write_fasta(tmp_path / "genome.fa", {"chr1": "ttcgttttcgttttttttt"})
    reads = [
        read_of("TTCATT", "6M", 0, name="r1", tags=tagged("C+m?,0;", [250])),
        read_of("CTTTCG", "6M", 4, name="r2", tags=tagged("C+m?,0,0;", [250, 3])),
        read_of("CG", "2M", 8, name="r3", flag=16, tags=tagged("C+m?,0;", [250])),
    ]
    path = write_bam(tmp_path / "a.bam", reads, {"chr1": 19})
    options = make_settings(reference=str(fasta), contexts=CONTEXTS)
    loci, record = run(path, options)
    assert loci == [("chr1", 2, "+", "CG", 1, 1), ("chr1", 8, "+", "CG", 1, 2)]
    assert record.calls_dropped == {"reference_mismatch": 1}
    assert record.layout == "context from the reference"
    assert loci == slow_modbam(path, options, {"chr1": "ttcgttttcgttttttttt"})[0]


def drawn_reads(genome: str, n_reads: int, seed: int = 0, **options: Any) -> list[pysam.AlignedSegment]:
    """Reads of the + strand at random places, sorted, with a call at every C."""
    source = random.Random(seed)
    reads = []
    for number, start in enumerate(sorted(source.randrange(len(genome) - 50) for _ in range(n_reads))):
        bases = genome[start : start + 50]
        n_calls = bases.count("C")
        tags = tagged(f"C+m?{',0' * n_calls};", [250] * n_calls) if n_calls else []
        reads.append(read_of(bases, "50M", start, name=f"r{number}", tags=tags, **options))
    return reads


@pytest.mark.parametrize("changed", [0.0, 0.05, 0.5, 1.0])
def test_calls_on_another_genome_than_the_reference_are_a_finding(tmp_path, changed):
    """References of the same lengths: the genome itself, with variants, half masked, and another one."""
    source = random.Random(1)
    genome = "".join(source.choices("ACGT", k=1000))
    at = set(source.sample(range(1000), int(1000 * changed)))
    letters = "N" if changed == 0.5 else "ACGT"
    other = "".join(source.choice(letters) if place in at else base for place, base in enumerate(genome))
    fasta = write_fasta(tmp_path / "genome.fa", {"chr1": other})
    path = write_bam(tmp_path / "a.bam", drawn_reads(genome, 200))
    _, record = run(path, make_settings(reference=str(fasta)))
    missed = record.calls_dropped.get("reference_mismatch", 0)
    found = [text for text in record.warnings if "loci.reference lacks, more than variants explain" in text]
    assert (len(found) == 1) == (changed > 0.05)
    if found:
        assert found[0].startswith(f"{missed} of {record.calls_read} calls ({100 * missed / record.calls_read:.3g} %)")
        (finding,) = [one for one in file_findings({"s": record.warnings}) if found[0] in one.text]
        assert finding.sample == "s"


@pytest.mark.parametrize(("untagged", "is_named"), [(0, False), (10, False), (30, True), (199, True)])
def test_many_reads_without_tags_are_a_finding(tmp_path, untagged, is_named):
    """Also of those that are left out for other reasons some have no tags, which do not count."""
    reads = drawn_reads("ACGTTG" * 100, 200)
    for read in reads[:untagged]:
        read.set_tags([])
    left_out = [read_of("ACGT", "4M", 999, name=f"x{number}", flag=1024) for number in range(500)]
    path = write_bam(tmp_path / "a.bam", [*reads, *left_out], {"chr1": 1100})
    _, record = run(path, make_settings(), "modbam")
    found = [text for text in record.warnings if "have no calls in their tags" in text]
    assert bool(found) == is_named
    if is_named:
        assert found[0].startswith(f"{untagged} of 200 aligned reads ({100 * untagged / 200:.3g} %)")


def test_a_reference_that_is_not_that_of_the_reads(tmp_path):
    path = write_bam(tmp_path / "a.bam", [read_of("TTCGT", "5M", tags=tagged("C+m?,0;", [250]))], {"chr1": 19})
    short = write_fasta(tmp_path / "short.fa", {"chr1": "ACGT"})
    with pytest.raises(UserError, match=r"short.fa: contig 'chr1' has 4 bases \(expected 19, as the aligned reads say"):
        run(path, make_settings(reference=str(short)))
    other = write_fasta(tmp_path / "other.fa", {"1": "A" * 19})
    with pytest.raises(UserError, match=r"other.fa: has no contig 'chr1'"):
        run(path, make_settings(reference=str(other)))
    (tmp_path / "other.fa.fai").unlink()
    with pytest.raises(UserError, match=r"other.fa.fai: cannot be read \(expected"):
        run(path, make_settings(reference=str(other)))


def test_reads_of_one_haplotype(tmp_path):
    """HP 1 in two phase sets of a contig, HP 2, and no HP."""
    tags = tagged("C+m?,0;", [250])
    labels = [{"HP": 1, "PS": 10}, {"HP": 2, "PS": 10}, {"HP": 1, "PS": 90}, {}, {"HP": 1}]
    reads = [
        read_of("TTCGT", "5M", 10 * number, contig=number // 4, name=f"r{number}", tags=[*tags, *more.items()])
        for number, more in enumerate(labels)
    ]
    path = write_bam(tmp_path / "a.bam", reads, {"chr1": 100, "chr2": 100})
    expected = {"1": [2, 22, 42], "2": [12], "unphased": [32], "all": [2, 12, 22, 32, 42], "3": []}
    for haplotype, positions in expected.items():
        loci, record = run(path, make_settings(haplotype=haplotype))
        assert [locus[1] for locus in loci] == positions
        assert record.reads_read == 5 == len(positions) + sum(record.reads_dropped.values())
        assert record.phase_sets == {"1": 3, "2": 1}.get(haplotype, 0)
        assert any("of 3 phase sets on 2 contigs" in text for text in record.warnings) == (haplotype == "1")
    _, record = run(path, make_settings(haplotype="1"))
    assert record.reads_dropped == {"other_haplotype": 1, "unphased": 1}


def counts_by_haplotype(path: Path, **options) -> tuple[Counter, dict[str, Counter]]:
    """Methylated and all reads of every locus: of all reads, and of each haplotype."""
    result = {}
    for haplotype in ("all", "1", "2", "unphased"):
        loci, _ = run(path, make_settings(haplotype=haplotype, **options))
        meth = Counter({(*locus[:4], "meth"): locus[4] for locus in loci})
        result[haplotype] = meth + Counter({(*locus[:4], "total"): locus[5] for locus in loci})
    return result.pop("all"), result


@needs_data
def test_haplotypes_and_unphased_reads_add_up_to_all_reads(tmp_path):
    """With the context of the reads, a variant may give haplotypes another context; the reference has one."""
    sources = {name: tmp_path / Path(name).name for name in ("nanomethviz/peg3.bam", "fibertools/NAPA.bam")}
    for name, path in sources.items():
        path.symlink_to(MODBAM / name)
    peg3, napa = sources.values()
    everything, parts = counts_by_haplotype(peg3)
    assert everything == parts["unphased"]
    assert len(everything) > 5000
    fasta = write_fasta(tmp_path / "genome.fa", {"chr19": reference_by_md(napa, "chr19")})
    options = ({"modification": "a", "contexts": (".",)}, {"reference": str(fasta)})
    for option in options:
        everything, parts = counts_by_haplotype(napa, **option)
        assert everything == sum(parts.values(), Counter())
        assert min(len(part) for part in parts.values()) > 1500


def reference_by_md(path: Path, contig: str) -> str:
    """The contig as far as the tag MD of its reads tells it, else N."""
    with pysam.AlignmentFile(str(path)) as bam:
        bases = np.full(bam.get_reference_length(contig), ord("N"), dtype=np.uint8)
        for read in bam:
            known = [step for step in read.cigartuples if step[0] in (0, 2, 7, 8)]
            assert sum(length for _, length in known) == read.reference_length
            sequence = read.get_reference_sequence().upper().encode()
            bases[read.reference_start : read.reference_end] = np.frombuffer(sequence, dtype=np.uint8)
    return bases.tobytes().decode()


# ------------------------------------------------------------------------------------------------------ what must fail


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (tagged("C+m?,0", [250]), "tag MM is 'C+m?,0' (expected text, each group closed by ';')"),
        (tagged("C+m?,0,;", [250]), "tag MM is 'C+m?,0,' (expected base, strand, codes and numbers, as in C+m?,2,0)"),
        (tagged("C+m?,-1;", [250]), "tag MM is 'C+m?,-1' (expected base, strand"),
        (tagged("Cm,0;", [250]), "tag MM is 'Cm,0' (expected base, strand"),
        (tagged(";", None), "tag MM is '' (expected base, strand"),
        (tagged("C+mx?,0;", [250, 1]), "tag MM is 'C+mx?,0' (expected codes among ACGNTUabcefghmno, or a ChEBI"),
        (tagged("C+m?,9;", [250]), "tag MM is 'C+m?,9' (expected no call beyond the 2 bases C of the read)"),
        (tagged("C+m?,9999999999;", [250]), "tag MM is 'C+m?,9999999999' (expected base, strand"),
        (tagged("C+m?,0;C+27551?,1;", [250, 1]), "tag MM is 'C+m; C+27551' (expected one group that calls m on a"),
        (tagged("C+m?,0;", None), "tag ML is 'absent' (expected a value for each call in MM)"),
        (tagged("C+m?,0,0;", [250]), "tag ML is '1 values' (expected 2 values, one for each call in MM)"),
        (tagged("C+mh?,0;", [250, 1, 1]), "tag ML is '3 values' (expected 2 values, one for each call in MM)"),
        ([("MM", "C+m?,0;"), ("ML", array("H", [250]))], "tag ML is array('H', [250]) (expected an array of bytes"),
        ([("MM", "C+m?,0;"), ("ML", "250")], "tag ML is '250' (expected an array of bytes"),
        ([("MM", 7)], "tag MM is 7 (expected text, each group closed by ';')"),
        (tagged("C+m?,0;", [250], MN=4), "tag MN is 4 (expected the length of SEQ, 7, for which MM was made)"),
    ],
)
def test_malformed_tags(tmp_path, tags, message):
    path = write_bam(tmp_path / "bad.bam", [read_of("ACGACGA", "7M", 10, name="read/7", tags=tags)])
    with pytest.raises(UserError) as caught:
        run(path, make_settings(), "modbam")
    assert str(caught.value).startswith(f"{path}: read 'read/7': {message}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    def message(path: Path, format_name: str = "auto") -> str:
        with pytest.raises(UserError) as caught:
            run(path, make_settings(), format_name)
        return str(caught.value).removeprefix(f"{path}: ")

    reads = [
        read_of("ACGACGA" * 40, "280M", start, name=f"r{start}", tags=tagged("C+m?,0;", [250]))
        for start in range(0, 600, 3)
    ]
    path = write_bam(tmp_path / "whole.bam", reads)
    raw = path.read_bytes()
    (tmp_path / "cut.bam").write_bytes(raw[:-28])
    assert message(tmp_path / "cut.bam").startswith("is truncated or damaged (the closing block")
    (tmp_path / "hole.bam").write_bytes(raw[: len(raw) // 2] + raw[-28:])
    assert message(tmp_path / "hole.bam").startswith("is truncated or damaged")
    unsorted = write_bam(tmp_path / "unsorted.bam", reads, order="unsorted")
    assert message(unsorted) == "the header's sort order (SO) is 'unsorted' (expected 'coordinate': sort the file)"
    reversed_ = write_bam(tmp_path / "reversed.bam", reads[::-1])
    assert message(reversed_).startswith("read 'r594' at chr1:595 stands after a later position")
    assert message(write_bam(tmp_path / "empty.bam", [])) == "the file has no reads"
    untagged = write_bam(tmp_path / "untagged.bam", [read_of("ACG", "3M")])
    assert message(untagged).startswith("none of the first 1 reads has calls (expected the tags MM and ML")
    assert message(untagged, "modbam").startswith("none of 1 reads has the tag MM (expected calls of bases in it;")
    for said in (message(untagged), message(untagged, "modbam")):
        assert "call bases with a model of modified bases" in said
        assert "samtools fastq -T MM,ML, then minimap2 -y" in said
    assert message(path, "bismark_cov").startswith("this is a BAM file")
    (tmp_path / "text.cov").write_text("chr1\t1\t1\t50\t1\t1\n")
    assert message(tmp_path / "text.cov", "modbam").startswith("this is not a BAM, CRAM or SAM file")
    assert message(tmp_path / "absent.bam", "modbam").startswith("cannot be read (no such file)")
    assert message(tmp_path / "absent.bam").startswith("cannot be read")


# ------------------------------------------------------------------------------------------------------- random reads

REFERENCE_LENGTH = 90


def random_cigar(random: random.Random) -> str:
    clip = lambda: f"{random.randint(1, 3)}S" if random.random() < 0.3 else ""  # noqa: E731
    hard = lambda: f"{random.randint(1, 3)}H" if random.random() < 0.1 else ""  # noqa: E731
    core = f"{random.randint(1, 12)}{random.choice('M=X')}"
    for _ in range(random.randint(0, 3)):
        core += f"{random.randint(1, 3)}{random.choice('IDN')}{random.randint(1, 8)}{random.choice('MM=X')}"
    return hard() + clip() + core + clip() + hard()


def random_tags(random: random.Random, sequenced: str) -> list[tuple]:
    """Groups whose skips fit the read, on both strands, with the modification asked for and without."""
    mm, ml = "", []
    sets = [
        ["C+m"],
        ["C+h"],
        ["C+mh"],
        ["C+m", "C+h"],
        ["C+76792", "C+27551"],
        ["C+C"],
        ["A+a"],
        ["N+n"],
        ["C+m", "A+28871"],
    ]
    opposite = [[], ["G-m"], ["G-hm"], ["T-a"], ["N-m"], ["G-g"]]
    for head in random.choice(sets) + random.choice(opposite):
        total = len(sequenced) if head[0] == "N" else sequenced.count(head[0])
        chosen = sorted(random.sample(range(total), random.randint(0, total)))
        skips = [later - earlier - 1 for earlier, later in pairwise([-1, *chosen])]
        n_codes = 1 if head[2:].isdigit() else len(head) - 2
        mm += ",".join([head + random.choice(["", ".", "?"]), *map(str, skips)]) + ";"
        ml += [random.choice([0, 20, 63, 64, 120, 128, 191, 192, 230, 255]) for _ in range(len(chosen) * n_codes)]
    return [("MM", mm), ("ML", array("B", ml)), ("MN", len(sequenced))]


def random_read(random: random.Random, name: str, contig: int) -> pysam.AlignedSegment:
    cigar = random_cigar(random)
    size = sum(int(length) for length, step in re.findall(r"(\d+)(.)", cigar) if step in "MIS=X")
    sequence = "".join(random.choices("CGATN", [6, 6, 2, 2, 1], k=size))
    flag = random.choice([0, 16]) | random.choice([0] * 9 + [0x100, 0x800, 0x400])
    sequenced = "".join(COMPLEMENT[base] for base in reversed(sequence)) if flag & 16 else sequence
    tags = random_tags(random, sequenced) if random.random() < 0.9 else []
    return read_of(sequence, cigar, random.randint(0, 20), flag=flag, contig=contig, name=name, tags=tags)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.randoms(use_true_random=False),
    n_reads=st.integers(1, 12),
    modification=st.sampled_from(("m", "h", "mh", "a")),
    most_probable_from=st.sampled_from((None, None, 0, 0.4, 0.75)),
    merge_strands=st.booleans(),
    thresholds=st.sampled_from([(0.75, 0.25), (0.5, 0.5), (0.9, 0.05)]),
    with_reference=st.booleans(),
    buffered=st.sampled_from([1, 20, 1 << 20]),
)
def test_random_reads(
    tmp_path,
    monkeypatch,
    seed,
    n_reads,
    modification,
    most_probable_from,
    merge_strands,
    thresholds,
    with_reference,
    buffered,
):
    names = ["chr1", "chr2"]
    references = {name: "".join(seed.choices("CGATcgatN", k=REFERENCE_LENGTH)) for name in names}
    reads = [random_read(seed, f"r{number}", seed.randint(0, 1)) for number in range(n_reads)]
    reads.append(read_of("ACG", "3M", 30, contig=1, name="last", tags=tagged("C+m?,0;", [250])))
    reads.sort(key=lambda read: (read.reference_id, read.reference_start))
    path = write_bam(tmp_path / "random.bam", reads, dict.fromkeys(names, REFERENCE_LENGTH))
    monkeypatch.setattr(alignments, "BUFFERED_CALLS", buffered)
    contexts = {"a": (".",), "m": ("CG",), "mh": ("CG",), "h": CONTEXTS}[modification]
    options = make_settings(
        modification=modification,
        contexts=contexts,
        merge_strands=merge_strands,
        modified_from=thresholds[0],
        unmodified_to=thresholds[1],
        most_probable_from=most_probable_from,
        reference=str(write_fasta(tmp_path / "genome.fa", references)) if with_reference else None,
    )
    loci, record = run(path, options)
    expected, fates = slow_modbam(path, options, references if with_reference else None)
    assert loci == expected
    assert_calls(record, fates)
    assert record.reads_read == len(reads)
    assert sum(locus[5] for locus in loci) <= fates["counted"]


def test_reference_positions_of_several_reads_at_once():
    """Clips, insertions and gaps, beside pysam's own pairs."""
    cigars = ["5M", "2H3S4M2I3M1D2M1S", "1M10N2M", "3=1X2I2="]
    reads = [
        read_of("A" * sum(int(n) for n, step in re.findall(r"(\d+)(.)", cigar) if step in "MIS=X"), cigar, 7 * index)
        for index, cigar in enumerate(cigars)
    ]
    expected = [
        -1 if place is None else place
        for read in reads
        for query, place in read.get_aligned_pairs()
        if query is not None
    ]
    np.testing.assert_array_equal(alignments.reference_positions(BamSource(Path(), ()), reads), expected)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
)
@example(seed=0, changes=[(0.78125, 11)])  # an operation of the CIGAR that there is none
def test_damaged_bytes_are_counted_or_refused(tmp_path, seed, changes):
    """Bytes of the header and the records are overwritten: nothing but a clear error, and no call is lost."""
    generator = random.Random(seed)
    reads = [random_read(generator, f"r{number}", 0) for number in range(4)]
    reads.sort(key=lambda read: read.reference_start)
    raw = bytearray(gzip.decompress(write_bam(tmp_path / "good.bam", reads).read_bytes()))
    for place, value in changes:
        raw[4 + int(place * (len(raw) - 4))] = value
    path = tmp_path / "damaged.bam"
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(bytes(raw))
    refused = ""
    try:
        loci, record = run(path, make_settings(merge_strands=False))
    except UserError as error:
        refused = str(error)
    if refused:
        assert refused.startswith(f"{path}: ")
        assert "\n" not in refused
    else:
        counted = record.calls_read - sum(record.calls_dropped.values())
        in_loci = sum(locus[5] for locus in loci)
        assert in_loci <= counted
        assert (in_loci == counted) == (record.rows_kept == record.rows_read)
