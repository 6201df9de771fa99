"""Every way in which an input file can be wrong gives one line that names the file, the line and the value."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from epivi.base.errors import UserError
from epivi.ingest import text as text_module
from epivi.ingest.layout import IngestSettings
from epivi.ingest.read import ingest

COV = "chr1\t{}\t{}\t50\t1\t1\n"
REPORT = "chr1\t{}\t{}\t1\t1\t{}\tCGA\n"
MODKIT = "chr1\t{0}\t{1}\tm\t4\t{2}\t{0}\t{1}\t255,0,0\t{3}\t{4}\t{5}\t3\t0\t0\t0\t0\t0\n"
METHYLOME = "seqnames\tstart\tstrand\tcontext\tcounts.methylated\tcounts.total\n"


def settings(*contexts: str) -> IngestSettings:
    return IngestSettings(contexts or ("CG",), "m", True, ("*",), (), 1, 500)


def message(path: Path, format_name: str = "auto") -> str:
    with pytest.raises(UserError) as caught:
        ingest(path, "s", settings(), lambda contig, counts: None, format_name=format_name, spill_directory=path.parent)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def cov(*positions: int) -> str:
    return "".join(COV.format(position, position) for position in positions)


def bad_line(tmp_path: Path, text: str, format_name: str = "auto") -> str:
    path = tmp_path / "input"
    path.write_text(text)
    return message(path, format_name)


GOOD = cov(1, 11, 21)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("chr1\t31\t31\t50\t1\n", "line 4: 5 columns (expected 6)"),
        ("chr1\t31\t31\t50\t1\t1\t1\n", "line 4: 7 columns (expected 6)"),
        ("chr1\n", "line 4: 1 column (expected 6)"),
        ("chr1\tx\t31\t50\t1\t1\n", "line 4: column 2 (start) is 'x' (expected a whole number, at most 2147483647)"),
        (
            "chr1\t3000000000\t3000000000\t50\t1\t1\n",
            "line 4: column 2 (start) is '3000000000' (expected a whole number",
        ),
        ("chr1\t0\t0\t50\t1\t1\n", "line 4: column 2 (start) is '0' (expected a 1-based position)"),
        ("chr1\t31\t35\t50\t1\t1\n", "line 4: column 3 (end) is '35' (expected the start, or the base after it"),
        ("chr1\t31\t31\tNA\t1\t1\n", "line 4: column 4 (percent) is 'NA' (expected a number)"),
        ("chr1\t31\t31\t150\t1\t1\n", "line 4: column 4 (percent) is '150' (expected a percentage from 0 to 100)"),
        ("chr1\t31\t31\t50\t-1\t1\n", "line 4: column 5 (methylated) is '-1' (expected a count from 0 to"),
        ("chr1\t31\t31\t50\t1\t1.5\n", "line 4: column 6 (unmethylated) is '1.5' (expected a whole number"),
        ("chr1\t31\t31\t50\t1\t\n", "line 4: column 6 (unmethylated) is '' (expected a whole number"),
        ("chr1\t31\t31\t50\t1\t2000000000\n", "line 4: column 6 (unmethylated) is '2000000000' (expected a count"),
    ],
)
def test_bad_rows_of_coverage(tmp_path, line, expected):
    assert bad_line(tmp_path, GOOD + line + cov(41)).startswith(expected)


def test_a_number_of_thousands_of_digits(tmp_path):
    """Python itself refuses to read so many digits as an integer."""
    text = bad_line(tmp_path, GOOD + f"chr1\t{'9' * 5000}\t31\t50\t1\t1\n")
    assert text.startswith("line 4: column 2 (start) is '99999")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("separator", ["\t", "  "])
def test_line_numbers_count_comments_blank_lines_and_blocks(tmp_path, monkeypatch, compress, separator):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 300)
    rows = [COV.format(10 * number, 10 * number) for number in range(1, 301)]
    for bad, expected in (("chr1\t7\t7\t50\t-3\t1\n", "is '-3'"), ("chr1\t7\t7\t50\tx\t1\n", "is 'x'")):
        text = "# made by hand\n\n" + "".join(rows[:200]) + "\n\n" + "".join(rows[200:250]) + bad + "".join(rows[250:])
        raw = text.replace("\t", separator).encode()
        path = tmp_path / "input"
        path.write_bytes(gzip.compress(raw) if compress else raw)
        # Two lines of preamble, 250 rows, two blank lines between them.
        assert message(path).startswith(f"line 255: column 5 (methylated) {expected}")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (REPORT.format(31, "*", "CG"), "line 3: column 3 (strand) is '*' (expected + or -)"),
        (REPORT.format(0, "+", "CG"), "line 3: column 2 (position) is '0' (expected a 1-based position)"),
        (REPORT.format(1, "-", "CG"), "line 3: column 3 (strand) is '-' (expected a plus-strand base"),
    ],
)
def test_bad_rows_of_a_report(tmp_path, row, expected):
    text = REPORT.format(11, "+", "CG") + REPORT.format(12, "-", "CG")
    assert bad_line(tmp_path, text + row).startswith(expected)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (MODKIT.format(-1, 0, "+", 4, 25, 1), "line 3: column 2 (start) is '-1' (expected a 0-based position)"),
        (MODKIT.format(30, 33, "+", 4, 25, 1), "line 3: column 3 (end) is '33' (expected one base after the start"),
        (MODKIT.format(30, 31, "x", 4, 25, 1), "line 3: column 6 (strand) is 'x' (expected +, - or .)"),
        (MODKIT.format(0, 1, "-", 4, 25, 1), "line 3: column 6 (strand) is '-' (expected a plus-strand base"),
        (MODKIT.format(30, 31, "+", -4, 25, 1), "line 3: column 10 (coverage) is '-4' (expected a count"),
        (MODKIT.format(30, 31, "+", 4, 101, 1), "line 3: column 11 (percent) is '101' (expected a percentage"),
        (
            MODKIT.format(30, 31, "+", 4, 25, 5),
            "line 3: column 10 (coverage) is '4' (expected the sum of the modified,",
        ),
    ],
)
def test_bad_rows_of_bedmethyl(tmp_path, row, expected):
    text = MODKIT.format(10, 11, "+", 4, 25, 1) + MODKIT.format(20, 21, "+", 4, 25, 1)
    assert bad_line(tmp_path, text + row).startswith(expected)


def test_covered_bedmethyl_row_without_percent(tmp_path):
    row = "chr1\t{0}\t{1}\t.\t0\t+\t{0}\t{1}\t0,0,0\t{2}\t{3}\n"
    text = row.format(10, 11, 4, 50) + row.format(20, 21, 0, "nan") + row.format(30, 31, 4, "nan")
    assert bad_line(tmp_path, text).startswith("line 3: column 11 (percent) is 'nan' (expected a percentage where")


def test_bad_rows_of_a_methylome(tmp_path):
    good = METHYLOME + "1\t11\t+\tCG\t1\t4\n"
    assert bad_line(tmp_path, good + "1\t12\t-\tCG\t5\t4\n") == (
        "line 3: column 5 (counts.methylated) is '5' (expected at most counts.total)"
    )
    assert bad_line(tmp_path, good + "1\t12\t-\tCG\tNA\t4\n").startswith("line 3: column 5 (counts.methylated) is 'NA'")
    assert bad_line(tmp_path, METHYLOME) == "the file has no rows"
    assert bad_line(tmp_path, METHYLOME + "1\t12\t-\tCG\t1\n") == "line 2: 5 columns (expected 6)"


def test_a_bad_first_row_is_named(tmp_path):
    assert bad_line(tmp_path, "chr1\tx\t1\t50\t1\t1\n" + GOOD).startswith("line 1: column 2 (start) is 'x'")
    assert bad_line(tmp_path, "chr1\t1\n" + GOOD) == "line 1: 2 columns (expected 6)"


def test_formats_that_do_not_fit(tmp_path):
    unknown = bad_line(tmp_path, "# a list\nchr1 7 gene\n")
    assert unknown.startswith("line 2: the format is not recognised from 'chr1 7 gene' (expected methyldackel,")
    assert bad_line(tmp_path, GOOD, "cytosine_report").startswith("line 1: column 3 (strand) is '1'")
    assert bad_line(tmp_path, GOOD, "bedmethyl") == "line 1: 6 columns (expected 11 or more)"
    assert bad_line(tmp_path, GOOD, "methylome").startswith("line 1: the header lacks seqnames")
    assert bad_line(tmp_path, REPORT.format(1, "+", "CG"), "bismark_cov") == "line 1: 7 columns (expected 6)"
    assert "format 'bam' is not known (expected auto, methyldackel, bismark_cov" in bad_line(tmp_path, GOOD, "bam")


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n"])
def test_files_without_rows(tmp_path, content):
    assert re.fullmatch(r"the file (is empty|has no rows)", bad_line(tmp_path, content))


def test_empty_gzip_file(tmp_path):
    path = tmp_path / "empty.gz"
    path.write_bytes(gzip.compress(b""))
    assert message(path) == "the file has no rows"


def test_missing_files_and_folders(tmp_path):
    assert message(tmp_path / "absent.cov") == "cannot be read (No such file or directory)"
    assert message(tmp_path) == "cannot be read (Is a directory)"


@pytest.mark.parametrize("rows", [20, 50_000])
@pytest.mark.parametrize("lost", [1, 6, 30])
def test_truncated_gzip(tmp_path, rows, lost):
    path = tmp_path / "cut.cov.gz"
    raw = gzip.compress(cov(*range(1, 10 * rows, 10)).encode(), compresslevel=1)
    path.write_bytes(raw[:-lost])
    assert message(path).startswith("is truncated or damaged")


def test_gzip_cut_in_half_and_gzip_with_a_flipped_bit(tmp_path):
    path = tmp_path / "cut.cov.gz"
    raw = gzip.compress(cov(*range(1, 300_000, 10)).encode(), compresslevel=1)
    path.write_bytes(raw[: len(raw) // 2])
    assert message(path).startswith("is truncated or damaged")
    path.write_bytes(raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:])
    assert message(path).startswith("is truncated or damaged")


def test_bgzip_cut_between_two_blocks(tmp_path):
    """Each block is a whole gzip file, so only the missing end block tells."""
    import pysam

    path = tmp_path / "cut.cov.gz"
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(cov(*range(1, 200_000, 10)).encode())
    raw = path.read_bytes()
    path.write_bytes(raw[: -len(text_module.BGZF_END)])
    assert message(path) == "is truncated or damaged (the closing block of a bgzip file is missing)"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"BZh91AY&SY", "this is a bzip2 file"),
        (b"PAR1\x15\x04", "this is a Parquet file"),
        (gzip.compress(b"BAM\x01\0\0\0\0"), "this is a BAM file"),
        (b"\0\1\2\3 not text", "this is not a text file"),
        (gzip.compress(gzip.compress(b"\0" * 999)), "this is not a text file"),
    ],
    ids=["bzip2", "parquet", "bam", "binary", "gzip in gzip"],  # not the contents: gzip puts the time in
)
def test_files_of_other_kinds(tmp_path, content, expected):
    path = tmp_path / "input"
    path.write_bytes(content)
    assert message(path).startswith(expected)
