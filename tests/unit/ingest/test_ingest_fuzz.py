"""Damaged, odd and hostile files through every reader: the clear error, or a record that accounts for every row.

The examples here are few, so that they run with every change; `pytest -m slow` runs many more of the same.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from array import array
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pysam
import pytest
from bam_cases import read_of, write_bam
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from epivi.base.errors import UserError
from epivi.ingest import text as text_module
from epivi.ingest.layout import Counts, IngestSettings
from epivi.ingest.qc import QcRecord
from epivi.ingest.read import READERS, ingest
from epivi.ingest.text import BGZF_END, KINDS
from epivi.tables.columns import CONTEXTS

# The rows of a small whole file of every text format; fields are written with spaces here and tabs there.
ROWS = {
    "methyldackel": (
        'track type="bedGraph" description="x CpG methylation levels"',
        "c1 9 10 75 3 1",
        "c1 19 21 0 0 2",
    ),
    "bismark_cov": ("c1 10 10 75 3 1", "c1 21 21 33.33 1 2", "c2 5 6 0 0 4"),
    "cytosine_report": ("c1 10 + 3 1 CG CGA", "c1 11 - 2 2 CG CGT", "c2 5 + 0 4 CHH CAA"),
    "bedmethyl": (
        "c1 9 10 m 4 + 9 10 255,0,0 4 75.00 3 1 0 0 0 0 0",
        "c1 10 11 h 4 - 10 11 255,0,0 4 25.00 1 3 0 0 0 0 0",
        "c2 4 5 m,CG,0 9 . 4 5 255,0,0 9 0.00 0 9 0 0 0 0 0",
    ),
    "methylome": (
        "seqnames start strand context counts.methylated counts.total",
        "1 10 + CG 3 4",
        "1 11 - CG 2 4",
        "2 5 * CHG 0 4",
    ),
    "pb_cpg": ("c1 9 10 75.0 Total 4 3 1 0.9 0.1", "c1 20 21 0.0 Total 5 0 5 . 0.1"),
    "beta_matrix": ("contig position s t", "c1 10 0.75 NA", "c1 11 NA 0.5", "c2 5 0 1"),
    "allc": ("c1 10 + CGA 3 4 1", "c1 11 - CGT 2 4 0", "c2 5 + CAA 0 4 1"),
    "cgmap": ("c1 C 10 CG CG 0.75 3 4", "c1 G 11 CG CG 0.5 2 4", "c2 C 5 CHH CA 0.0 0 4", "c2 G 9 -- -- na 0 0"),
    "dnmtools": ("c1 9 + CpG 0.75 4", "c1 10 - CpGx 0.5 4", "c1 12 - CXG 0.333333 3", "c2 4 + CHH 0 4"),
    "biscuit": ("c1 9 10 0.750 4", "c1 10 11 0.500 4", "c2 4 5 . 0"),
    "methylkit": (
        "chrBase chr base strand coverage freqC freqT",
        "c1.10 c1 10 F 4 75.00 25.00",
        "c1.11 c1 11 R 3 66.67 33.33",
    ),
    "dss": ("chr pos N X", "c1 10 4 3", "c1 11 4 2", "c2 5 4 0"),
}
MORE_ROWS = {
    "bedmethyl of two counts": ("c1 9 11 5mC 4 . 9 11 0,0,0 4 75.00 1 3", "c1 20 22 5mC 2 . 20 22 0,0,0 2 0.00 2 0"),
    "biscuit, both strands": ("c1 9 11 0.750 4 C:1.000:1,G:0.667:3", "c1 20 22 0.500 4 C:.:0,G:0.500:4"),
    "biscuit with contexts": ("c1 9 10 C CG CG NNCGA 0.750 4", "c1 10 11 G CG CG NNCGA 0.500 4"),
    "biscuit, both strands and counts": ("c1 9 11 75 3 1 C:1.000:1,G:0.667:3", "c1 20 21 0 0 4 C:0.000:4,G:.:0"),
    "bedmethyl of a percent": ("c1 9 10 . 4 + 9 10 0,0,0 15 55", "c1 20 21 . 4 - 20 21 0,0,0 0 nan"),
    "pb_cpg of a model": ("c1 9 10 46.2 hap1 63 30 33 47.6", "c1 20 21 4.1 hap1 31 1 30 3.2"),
}
TABLES = [*ROWS.values(), *MORE_ROWS.values()]

ODD_FIELDS = (
    "", " ", ".", "-", "+", "0", "1", "-1", "2147483647", "2147483648", "-2147483649", "1000000001", "9" * 4400, "1e3",
    "1.5", "0x1F", "1_0", "nan", "NaN", "inf", "-inf", "1e999", "100.0001", "-0.0", "+5", "5 ", "٣", "²", "NA", "null",
    "CG", "CHH", "cg", "C", "N", "*", "h", "m,CG,0", "a,b,c", "track", "#", '"', "'", "\\", "\r", "\0", "\ufeff", "é",
    "\u2028", "\x0b", "\x85", "c" * 70000,
)  # fmt: skip
FIELD = st.one_of(
    st.sampled_from(ODD_FIELDS),
    st.text(st.characters(codec="utf-8"), max_size=6),
    st.integers().map(str),
    st.floats().map(repr),
)
FORMATS = st.sampled_from(["auto", *(name for name, reader in READERS.items() if not reader.is_bam)])


def profile(max_examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=checks, derandomize=True)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A small table with some of its fields, lines or bytes changed."""
    rows = [row.split(" ") if not row.startswith("track") else [row] for row in draw(st.sampled_from(TABLES))]
    rows = rows[:1] + draw(st.lists(st.sampled_from(rows), max_size=8)) + rows[1:]
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.integers(0, len(rows) - 1))
        change = draw(st.sampled_from(("field",) * 9 + ("cut", "longer", "line", "blank")))
        fields = list(rows[row])
        if change == "field" and fields:
            fields[draw(st.integers(0, len(fields) - 1))] = draw(FIELD)
        elif change == "cut":
            fields.pop()
        elif change == "longer":
            fields.append(draw(FIELD))
        elif change == "line":
            fields = draw(st.lists(FIELD, max_size=12))
        else:
            fields = [""]
        rows[row] = fields or [""]
    separator = draw(st.sampled_from(("\t", "\t", "\t", " ", " \t ")))
    ending = draw(st.sampled_from(("\n",) * 5 + ("\r\n", "\r", "\n\n", "\r\r\n")))
    start = draw(st.sampled_from(("",) * 5 + ("# note\n", "\ufeff", "\n", "track x\n", "browser y\n")))
    text = start + ending.join(separator.join(fields) for fields in rows) + draw(st.sampled_from((ending, "")))
    raw = text.encode()
    return damaged(draw, raw) if draw(st.integers(0, 9)) == 0 else raw


def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """A stretch of the bytes overwritten, taken out or put in."""
    at = draw(st.integers(0, len(raw)))
    lost = draw(st.integers(0, 20))
    return raw[:at] + draw(st.binary(max_size=20)) + raw[at + lost :]


@st.composite
def compressed(draw: st.DrawFn, content: st.SearchStrategy[bytes]) -> tuple[bytes, bool]:
    """Content plain, as gzip of one or two members or as bgzip, and whether the compression is whole."""
    raw = draw(content)
    kind = draw(st.sampled_from(("plain", "gzip", "members", "bgzip")))
    if kind == "plain":
        return raw, True
    cut = draw(st.integers(0, len(raw))) if kind != "gzip" else len(raw)
    if kind == "bgzip":
        packed = bgzip(raw[:cut], raw[cut:])
    else:
        packed = b"".join(gzip.compress(part, mtime=0) for part in (raw[:cut], raw[cut:]) if part)
    if draw(st.integers(0, 3)) == 0:
        return damaged(draw, packed), False
    return packed, True


def bgzip(*parts: bytes) -> bytes:
    stream = io.BytesIO()
    for part in parts:
        stream.write(_bgzf_block(part) if part else b"")
    return stream.getvalue() + BGZF_END


def _bgzf_block(part: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = compressor.compress(part) + compressor.flush()
    header = struct.pack("<4BI2BHBBHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
    return header + body + struct.pack("<II", zlib.crc32(part), len(part))


SETTINGS = st.builds(
    IngestSettings,
    contexts=st.sampled_from((("CG",), ("CHH",), CONTEXTS[:3])),
    modification=st.sampled_from("mmh"),
    merge_strands=st.booleans(),
    include=st.sampled_from((("*",), ("c*",))),
    exclude=st.sampled_from(((), ("c2",))),
    pseudo_reads=st.sampled_from((None, 4, 20)),
    min_coverage=st.sampled_from((1, 3)),
    max_coverage=st.sampled_from((4, 65535)),
)


def outcome(path: Path, options: IngestSettings, format_name: str, threads: int) -> QcRecord | None:
    """The record, whose sums are checked, or None after the clear error."""
    written = {"loci": 0, "reads": 0}

    def write(contig: str, loci: Counts) -> None:
        assert all(column.min() >= 0 for column in loci)
        assert (loci.meth <= loci.total).all()
        written["loci"] += len(loci.pos0)

    try:
        record = ingest(
            path, "s", options, write, format_name=format_name, spill_directory=path.parent, threads=threads
        )
    except UserError as error:
        check_message(path, str(error))
        return None
    assert record.rows_read == record.rows_kept + sum(record.dropped.values())
    assert written["loci"] == record.loci_written
    assert record.loci_written == record.rows_kept - record.duplicates_merged - record.strands_merged
    return record


def check_message(path: Path, message: str) -> None:
    """One line that names the file and can be printed."""
    assert message.startswith(f"{path}: ")
    assert not set(message) & {"\n", "\r"}
    message.encode()


def check_table(
    folder: Path, file: tuple[bytes, bool], options: IngestSettings, format_name: str, threads: int
) -> None:
    raw, is_whole = file
    path = folder / "input"
    path.write_bytes(raw)
    record = outcome(path, options, format_name, threads)
    if record is not None and is_whole:
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        assert record.rows_read in n_rows(content)


def n_rows(content: bytes) -> set[int]:
    """Rows of a table by looking at one line after the other; two answers where its blanks decide what a header is."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and (not lines[0].strip() or re.match(rb"#|(track|browser)[ \t]", lines[0], re.IGNORECASE)):
        lines.pop(0)
    first = lines[0].rstrip(b"\r").decode(errors="replace")
    return {
        sum(bool(line.strip()) for line in lines) - text_module.is_header(text_module.split(first, any_whitespace))
        for any_whitespace in (False, True)
    }


FILES = compressed(tables())
FORMATS_ASKED = st.one_of(*[st.just("auto")] * 5, FORMATS)


DAMAGED_TABLES = given(
    file=FILES,
    options=SETTINGS,
    format_name=FORMATS_ASKED,
    threads=st.sampled_from((1, 1, 1, 2)),
    block=st.sampled_from((40, 1 << 20)),
)


@profile(400)
@DAMAGED_TABLES
def test_damaged_tables(tmp_path, monkeypatch, file, options, format_name, threads, block):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", block)
    check_table(tmp_path, file, options, format_name, threads)


@pytest.mark.slow
@profile(20_000)
@DAMAGED_TABLES
def test_many_damaged_tables(tmp_path, monkeypatch, file, options, format_name, threads, block):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", block)
    check_table(tmp_path, file, options, format_name, threads)


# ---------------------------------------------------------------------------------------------------------------- BAM

SEQUENCE = "ACGCGTTCCGGCAGTC"
TAG_TEXT = st.one_of(
    st.sampled_from(
        ("C+m?,0,1;", "C+m.,0;", "G-m?,0;C+h?,1;", "C+mh?,0;", "A+a,0;", "N+m?,3;", "C+27551?,1;", "", ";")
    ),
    st.sampled_from(("z" * 16, "..ZxX.hHuU..z.Z.", "Z" * 15, "CT", "GA", "1", "x")),
    st.text("ACGTN+-mha?.,;0123456789zZxXhHuU ", max_size=20),
)
TAG_VALUE = st.one_of(
    TAG_TEXT,
    st.lists(st.integers(0, 255), min_size=1, max_size=20).map(lambda levels: array("B", levels)),
    st.lists(st.integers(-300, 70000), min_size=1, max_size=6).map(lambda numbers: array("i", numbers)),
    st.integers(-(2**31), 2**32 - 1),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
FLAG = st.sampled_from((0, 16, 0, 16, 65, 129, 145, 4, 0x100, 0x200, 0x400, 0x800))
CIGARS = st.sampled_from(("16M", "16M", "2S10M1D4M", "8M2I6M", "5H16M", "16S", "3M5N13M", "10M", "8=8X", "20M"))


@st.composite
def reads(draw: st.DrawFn) -> pysam.AlignedSegment:
    """A read of 16 bases, or none, whose tags are those of the formats but may hold anything."""
    usual = draw(
        st.sampled_from(({"MM": "C+m?,0,1;", "ML": array("B", [9, 240])}, {"XM": "..ZxX.hHuU..z.Z.", "XG": "CT"}))
    )
    odd = draw(
        st.dictionaries(st.sampled_from(("MM", "Mm", "ML", "Ml", "MN", "XM", "XG", "HP", "PS")), TAG_VALUE, max_size=2)
    )
    start = draw(st.integers(0, 60))
    read = read_of(
        draw(st.sampled_from((SEQUENCE, SEQUENCE, SEQUENCE, ""))), draw(CIGARS), start, flag=draw(FLAG),
        name=draw(st.sampled_from(("r1", "r2", "r3"))), mate=(0, draw(st.integers(0, 60))),
    )  # fmt: skip
    for tag, value in {**usual, **odd}.items():
        read.set_tag(tag, value)
    return read


def check_reads(folder: Path, some: list[pysam.AlignedSegment], options: IngestSettings, format_name: str) -> None:
    path = write_bam(folder / "reads.bam", sorted(some, key=lambda read: read.reference_start))
    record = outcome(path, options, format_name, threads=1)
    if record is None:
        return
    assert record.reads_read == len(some)
    counted = record.calls_read - sum(record.calls_dropped.values())
    if options.min_coverage == 1 and options.max_coverage == 65535 and record.rows_kept == record.rows_read:
        assert sum(part["reads"] for part in record.methylation.values()) == counted


ANY_READS = given(
    some=st.lists(reads(), min_size=1, max_size=6),
    options=SETTINGS,
    haplotype=st.sampled_from(("all", "all", "1", "unphased")),
    format_name=st.sampled_from(("auto", "modbam", "bismark_bam")),
)


@profile(200)
@ANY_READS
def test_reads_with_any_tags(tmp_path, some, options, haplotype, format_name):
    check_reads(tmp_path, some, replace(options, haplotype=haplotype), format_name)


@pytest.mark.slow
@profile(10_000)
@ANY_READS
def test_many_reads_with_any_tags(tmp_path, some, options, haplotype, format_name):
    check_reads(tmp_path, some, replace(options, haplotype=haplotype), format_name)


# ------------------------------------------------------------------------------------------------------------- numbers

NUMBERS = st.one_of(FIELD, st.text("0123456789-+.eExXinfaINFA_ ()", max_size=9))


@profile(300)
@given(text=NUMBERS.filter(lambda text: not set(text) & set("\n\r\t")), kind=st.sampled_from(("integer", "number")))
@example(text="-2147483648", kind="integer")
@example(text="0" * 5000 + "1", kind="integer")
def test_the_pass_that_names_a_bad_value_agrees_with_the_parser(text, kind):
    """Otherwise a line that does not parse could not be named."""
    source = text_module.TextSource(Path("none"), (), ("x\t0",), 0)
    try:
        text_module._parsed(source, [text_module.Column(1, "value", kind)], f"x\t{text}\n".encode())
    except pa.ArrowInvalid:
        assert not KINDS[kind].is_valid(text)
    else:
        assert KINDS[kind].is_valid(text)
