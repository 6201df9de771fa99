"""Files that users bring and that are not read: one line that says what they are and what to bring instead."""

from __future__ import annotations

import gzip

import pytest
from test_ingest_errors import bad_line, message
from test_ingest_files import make_settings, run
from test_ingest_more_formats import table

from epivi.ingest.refused import REFUSED_BYTES
from epivi.ingest.refused_tables import REFUSED_LINES

BYTES = {
    b"BZh91AY&SY": "a bzip2 file (expected it as gzip: bunzip2 -c FILE | gzip)",
    b"\xfd7zXZ\0\0\x04": "an xz file (expected it as gzip",
    b"\x28\xb5\x2f\xfd\x04": "a zstandard file (expected it as gzip",
    b"PK\x03\x04\x14": "a zip archive or an Excel workbook (expected what is in it",
    b"\xd0\xcf\x11\xe0\xa1\xb1": "an Excel workbook (expected it saved as text with tabs)",
    b"\x26\xfc\x8f\x88\x04\0": "a bigWig file, levels without reads (expected the counts that it was made from",
    b"\xeb\xf2\x89\x87\x04\0": "a bigBed file (expected it as BED: bigBedToBed",
    b"IDAT\x03\0\0\0": "an IDAT file, intensities of an array (expected the beta values",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (expected a table of counts, or the BAM file",
    gzip.compress(b"BCF\x02\x02rest"): "a BCF file, variants (expected counts of methylation; of biscuit",
    gzip.compress(b"X\n\0\0\0\x03\0\x04"): "an R object (expected what write.table writes of it",
    gzip.compress(b"RDX3\nX\n\0\0\0\x03"): "an R object (expected what write.table writes of it",
    gzip.compress(b"TBI\x01\0\0"): "an index of another file (expected the file that it belongs to",
    b"BAI\x01\0\0": "an index of another file (expected the file that it belongs to",
}
LINES = {
    "vcf": ("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\n" + table("c1 10 . C T 30 PASS . GT 0/1"), "a VCF file, variants"),
    "wiggle": ("track type=wiggle_0\nfixedStep chrom=c1 start=1 step=1\n0.5\n", "a wiggle file, levels without reads"),
    "fasta": (">chr1\nACGT\n", "a FASTA file"),
    "fastq": ("@read1\nACGT\n+\nIIII\n", "a FASTQ file"),
    "web page": ("<!DOCTYPE html>\n<html>\n", "a web page (expected the file itself: the download went wrong)"),
    "bedgraph": (table("c1 10 11 0.75", "c1 20 21 0"), "a bedGraph, one value a row: a level without its reads"),
    "atcgmap": (
        table("c1 T 9 -- -- 0 10 0 0 0 0 0 0 0 0 na", "c1 C 11 CHH CC 0 10 0 0 0 0 0 0 0 0 0.0"),
        "an ATCGmap of BS-Seeker2 (expected its CGmap: cgmaptools convert atcgmap2cgmap)",
    ),
    "xcounts": ("#DNMTOOLS 1.4.2\n#c1 99\n#\nc1\n10\t3\t1\n5\t0\t2\n7\t1\t1\n", "an xcounts file of dnmtools"),
    "methratio": (
        table("chr pos strand context ratio eff_CT_count C_count CT_count", "c1 11 + AACGT 0.5 4.0 2 4"),
        "a methratio table of BSMAP (expected its columns chr, pos, CT_count and C_count as a table with the header",
    ),
    "methylkit object": (
        table("chr start end strand coverage numCs numTs", "c1 11 11 + 4 3 1"),
        "a table of a methylKit object (expected its columns chr, start, coverage and numCs as a table",
    ),
    "nanopolish calls": (
        table("chromosome strand start end read_name log_lik_ratio log_lik_methylated", "c1 + 10 10 r1 2.5 -80"),
        "calls of single reads by Nanopolish (expected their counts",
    ),
    "nanopolish frequencies": (
        table("chromosome start end num_motifs_in_group called_sites called_sites_methylated", "c1 10 10 1 4 3"),
        "a table of frequencies by Nanopolish or f5c (expected its chromosome, start + 1,",
    ),
    "commas": ("chr,pos,N,X\nc1,11,4,3\n", "a table separated by commas (expected one separated by tabs)"),
}


@pytest.mark.parametrize(("content", "expected"), BYTES.items(), ids=range(len(BYTES)))
def test_files_by_their_first_bytes(tmp_path, content, expected):
    path = tmp_path / "input"
    path.write_bytes(content)
    assert message(path).startswith(f"this is {expected}")
    assert message(path, "bismark_cov").startswith(f"this is {expected}")


@pytest.mark.parametrize(("text", "expected"), LINES.values(), ids=LINES)
def test_tables_by_their_first_lines(tmp_path, text, expected):
    error = bad_line(tmp_path, text)
    assert error.startswith(f"this is {expected}")
    assert " (expected " in error


def test_each_has_an_example_here():
    assert set(LINES) == set(REFUSED_LINES)
    said = {refused.what for refused in REFUSED_BYTES.values()}
    shown = {expected.split(" (expected")[0] for expected in BYTES.values()}
    assert said - shown <= {
        "a Parquet file",
        "an Arrow file",
        "a POD5 file, signals without calls",
        "a PDF",
    }


@pytest.mark.parametrize(
    "text",
    [
        table("chr pos methylated total", "c1 11 3 4", "c1 21 0 1"),
        table("chr pos strand level", "c1 11 + 0.75", "c1 21 - 0"),
    ],
    ids=["counts", "strands"],
)
def test_other_tables_by_position_are_no_beta_values(tmp_path, text):
    error = bad_line(tmp_path, text)
    assert error.startswith(
        "the header has a contig and a position, but the rows hold no beta values (expected chr, pos,"
    )


def test_what_is_advised_is_read(tmp_path):
    """The table with the header chr, pos, N, X, into which others are to be turned."""
    path = tmp_path / "input"
    path.write_text(table("chr pos N X", "c1 11 4 3"))
    assert run(path, make_settings())[0] == [("c1", 10, ".", "CG", 3, 4)]
    assert "as a table with the header chr, pos, N, X" in bad_line(tmp_path, table("c1 11 gene"))
