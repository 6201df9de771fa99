"""Aligned reads that cannot be counted, and files of them that are no BAM: CRAM and SAM."""

from __future__ import annotations

import gzip
import json
import random
from array import array
from dataclasses import replace
from pathlib import Path

import pysam
import pytest
from bam_cases import make_settings, read_of, write_bam
from places import DATA
from test_ingest_bismark_bam import bisulfite
from test_ingest_processes import CONTIGS, in_this_process, indexed, modified_reads, no_minimum, run

from epivi.base.errors import UserError
from epivi.ingest import alignments
from epivi.ingest.read import detect
from epivi.quality.findings import file_findings

__all__ = ["in_this_process", "no_minimum"]  # fixtures
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public test data beside the repository are absent")
SKIPPED = make_settings(bad_reads="skip")


def bad_reads() -> dict[str, pysam.AlignedSegment]:
    """A read for each reason, at positions where others have calls."""
    calls = {
        "bad_MM": [("MM", "C+m,9;"), ("ML", array("B", [1]))],
        "bad_ML": [("MM", "C+m,0;"), ("ML", array("B", [1, 1]))],
        "bad_MN": [("MM", "C+m,0;"), ("ML", array("B", [1])), ("MN", 3)],
    }
    return {reason: read_of("ACGT", "4M", 150, name=reason, tags=tags) for reason, tags in calls.items()}


# ---------------------------------------------------------------------------------------------------------- bad reads


@pytest.mark.parametrize("threads", [1, 2])
def test_bad_reads_are_left_out_by_reason(tmp_path, monkeypatch, in_this_process, threads):
    monkeypatch.setattr(alignments, "STRETCH_BASES", 30)
    good = modified_reads(random.Random(4), 100)
    loci, expected = run(indexed(tmp_path / "good.bam", good), make_settings(), 1)
    path = indexed(tmp_path / "bad.bam", good + list(bad_reads().values()))
    with pytest.raises(UserError, match="read 'bad_"):
        run(path, make_settings(), threads)
    found, record = run(path, SKIPPED, threads)
    assert found == loci
    counted = dict.fromkeys(bad_reads(), 1)
    assert record.reads_dropped == {**expected.reads_dropped, **counted}
    assert record.reads_read == expected.reads_read + 3
    reasons = ", ".join(f"{reason} 1" for reason in counted)
    (warning,) = [text for text in record.warnings if "cannot be counted" in text]
    assert warning == f"3 of 103 reads (2.91 %) cannot be counted and are left out ({reasons})"
    assert [finding[-1] for finding in file_findings({"s": [warning]})] == [f"s: {warning}"]


@pytest.mark.parametrize("reason", list(bad_reads()))
def test_each_kind_of_bad_read_ends_the_reading_by_default(tmp_path, reason):
    path = write_bam(tmp_path / "bad.bam", [bad_reads()[reason]])
    with pytest.raises(UserError, match=f"read '{reason}': "):
        run(path, make_settings(), 1, "modbam")
    loci, record = run(path, SKIPPED, 1, "modbam")
    assert (loci, record.reads_dropped) == ([], {reason: 1})
    assert "no call of 1 reads counts" in record.warnings[0]


def test_bad_bisulfite_reads_are_left_out_and_their_mates_count(tmp_path):
    first = bisulfite("ZZ..", 10, flag=1 | 2 | 64, mate=11, name="pair")
    second = bisulfite("Zq.", 11, flag=1 | 2 | 128, mate=10, name="pair")
    other = bisulfite("z", 30, xg="AG", name="strand")
    path = write_bam(tmp_path / "reads.bam", [first, second, other])
    with pytest.raises(UserError, match="read 'pair': tag XM"):
        run(path, make_settings(merge_strands=False), 1)
    written, record = run(path, make_settings(merge_strands=False, bad_reads="skip"), 1)
    assert written == [("chr1", [10, 11], [0, 0], [0, 0], [1, 1], [1, 1])]
    assert record.reads_dropped == {"bad_XM": 1, "bad_XG": 1}


def test_an_unsorted_file_is_no_bad_read(tmp_path):
    path = write_bam(tmp_path / "reads.bam", [bisulfite("Z", 20), bisulfite("Z", 10)])
    with pytest.raises(UserError, match="stands after a later position"):
        run(path, SKIPPED, 1)


# ----------------------------------------------------------------------------------------------------- CRAM and SAM


def genome(tmp_path: Path, seed: int = 0, contigs: dict[str, int] = CONTIGS) -> Path:
    path = tmp_path / f"genome{seed}.fa"
    generator = random.Random(seed)
    path.write_text("".join(f">{name}\n{''.join(generator.choices('ACGT', k=n))}\n" for name, n in contigs.items()))
    pysam.faidx(str(path))
    return path


def converted(bam: Path, path: Path, mode: str, reference: Path | None = None) -> Path:
    with (
        pysam.AlignmentFile(str(bam)) as source,
        pysam.AlignmentFile(
            str(path), mode, template=source, reference_filename=None if reference is None else str(reference)
        ) as target,
    ):
        for read in source:
            target.write(read)
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No sequence but that of the reference is found."""
    monkeypatch.setenv("REF_PATH", str(tmp_path / "nowhere"))
    monkeypatch.setenv("REF_CACHE", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reads", ["modbam", "bismark_bam"])
def test_cram_and_sam_give_what_bam_gives(tmp_path, offline, in_this_process, reads, threads):
    if reads == "modbam":
        bam = indexed(tmp_path / "reads.bam", modified_reads(random.Random(1), 200))
    else:
        bam = indexed(tmp_path / "reads.bam", [bisulfite("Zz..", start, name=f"r{start}") for start in range(80)])
    fasta = genome(tmp_path)
    options = make_settings(reference=str(fasta))
    expected = run(bam, options, 1)
    assert expected[1].loci_written > 20
    cram = converted(bam, tmp_path / "reads_without_suffix", "wc", fasta)
    sam = converted(bam, tmp_path / "reads.sam", "w")
    zipped = tmp_path / "reads.sam.gz"
    zipped.write_bytes(gzip.compress(sam.read_bytes()))
    for path in (cram, sam, zipped):
        assert detect(path) == reads
        loci, record = run(path, options, threads)
        assert loci == expected[0]
        assert record == replace(expected[1], path=str(path))
    assert run(sam, make_settings(), threads)[0] == run(bam, make_settings(), 1)[0]


def test_cram_without_its_reference_is_one_clear_line(tmp_path, offline):
    bam = indexed(tmp_path / "reads.bam", modified_reads(random.Random(1), 100))
    cram = converted(bam, tmp_path / "reads.cram", "wc", genome(tmp_path))

    def message(options) -> str:
        with pytest.raises(UserError) as caught:
            run(cram, options, 1)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert message(make_settings()) == (
        f"{cram}: this is a CRAM file, whose bases are stored as differences (expected loci.reference, the FASTA file"
        " that its reads were aligned to)"
    )
    other = genome(tmp_path, 1)
    assert f"or {other} (loci.reference) is not what its reads" in message(make_settings(reference=str(other)))
    lacking = genome(tmp_path, 2, {"chr1": 400})
    assert f"{lacking}" in message(make_settings(reference=str(lacking)))
    absent = tmp_path / "absent.fa"
    assert message(make_settings(reference=str(absent))).startswith(f"{absent}: cannot be read")


def test_cut_files(tmp_path, offline):
    bam = indexed(tmp_path / "reads.bam", modified_reads(random.Random(1), 300))
    fasta = genome(tmp_path)
    cram = converted(bam, tmp_path / "reads.cram", "wc", fasta)
    cram.write_bytes(cram.read_bytes()[:-60])
    with pytest.raises(UserError, match="is truncated or damaged"):
        run(cram, make_settings(reference=str(fasta)), 1)
    sam = converted(bam, tmp_path / "reads.sam", "w")
    text = sam.read_bytes()
    assert run(sam, make_settings(), 1)[1].last_line_is_open is False
    sam.write_bytes(text.rstrip(b"\n"))
    record = run(sam, make_settings(), 1)[1]
    assert any("the last line has no end" in warning for warning in record.warnings)
    sam.write_bytes(text + b"r\t0\tchr3\tx\n")
    with pytest.raises(UserError, match="is truncated or damaged"):
        run(sam, make_settings(), 1)


@needs_data
def test_real_reads_as_cram_and_sam(tmp_path, offline):
    """Reads of fibertools with their bases where no reference is known stored as they are."""
    bam = DATA / "modbam" / "fibertools" / "NAPA.bam"
    sam = converted(bam, tmp_path / "NAPA.sam", "w")
    options = make_settings(contexts=("CG",))
    copy = tmp_path / "NAPA.bam"
    copy.symlink_to(bam)
    expected = run(copy, options, 1)
    loci, record = run(sam, options, 1)
    assert len(json.dumps(loci)) > 1000
    assert loci == expected[0]
    assert record == replace(expected[1], path=str(sam))
