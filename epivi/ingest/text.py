"""Text tables in blocks: compression by magic bytes, tabs or spaces, and the exact line of what is wrong.

Rows are parsed by pyarrow in blocks. Where a block does not parse or breaks a rule, a second pass over the lines finds
the line number, so that the fast pass need not count lines.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
from isal import igzip, isal_zlib
from pyarrow import csv

from epivi.base.errors import UserError
from epivi.base.ordered import on_threads
from epivi.ingest.refused import refused_bytes

BLOCK_BYTES = 1 << 20
LINE_BYTES_MAX = 1 << 24
SAMPLE_BYTES = 1 << 20
SAMPLE_LINES = 50
INT32_MAX = 2**31 - 1

GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
REPLACEMENT = "\ufffd"  # what Python reads in place of bytes that are not UTF-8
MISSING = ["", ".", "NA", "na", "N/A", "NaN", "nan", "null"]
BLANK = re.compile(rb"\n*")
LINE_END = re.compile(rb"\r+(?:\n|$)")
# Fields in quotes, as R writes them: in a block of lines whose separators are tabs, and alone.
QUOTED_FIELDS = re.compile(rb"""(?:\A|(?<=[\t\n]))(["'])([^"'\t\n]*)\1(?=[\t\n]|\Z)""")
QUOTED_FIELD = re.compile(r"""(["'])([^"'\t\n]*)\1""")
# What reading a damaged file raises; the type stub has the last as a value.
DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, isal_zlib.error)  # type: ignore[assignment]
# The empty block that ends every complete bgzip file; without it a file cut between two blocks would pass as whole.
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


class Column(NamedTuple):
    """One column to read: its place in the row (0-based), its name in messages, and what it holds."""

    place: int
    name: str
    kind: str  # a key of KINDS


class Kind(NamedTuple):
    """How a column is parsed, how one value is checked in the second pass, and how messages call it."""

    arrow_type: pa.DataType
    is_valid: Callable[[str], bool]
    expected: str
    may_be_missing: bool = False  # MISSING is read as nan


class TextColumn(NamedTuple):
    """Repeated strings of one block: `values[codes[row]]`."""

    codes: np.ndarray  # int32 [rows]
    values: tuple[str, ...]

    def lookup(self, table: Sequence[int], dtype: Any = np.int8) -> np.ndarray:
        """The entry of `table` (one for each of `values`) at every row."""
        return np.asarray(table, dtype=dtype)[self.codes]


class Rows(NamedTuple):
    """A block of parsed rows: the number of the first (0-based, blank lines not counted) and its columns by name."""

    first: int
    size: int
    columns: dict[str, Any]  # name -> int32/float64 array [count], or TextColumn


@dataclass
class Ending:
    """What only the end of a file shows; known when all of its rows are read."""

    is_open: bool = False  # the last line lacks its end


@dataclass(frozen=True)
class TextSource:
    """A text table on disk.

    preamble: leading blank lines, comments and track lines; `sample`: the lines after them, SAMPLE_LINES at most;
    header_lines: lines before the first row, in all; any_whitespace: fields end at any run of spaces or tabs, not only
    at a tab; threads: blocks that are parsed at once; ending: filled in by read_rows.
    """

    path: Path
    preamble: tuple[str, ...]
    sample: tuple[str, ...]
    header_lines: int
    any_whitespace: bool = False
    threads: int = 1
    ending: Ending = field(default_factory=Ending, compare=False)

    @property
    def has_track_line(self) -> bool:
        """Whether a track line, as of a bedGraph, stands before the first row."""
        return any(line.lower().startswith("track") for line in self.preamble)

    @cached_property
    def column_count(self) -> int:
        """The commonest number of fields of the first rows."""
        return Counter(len(split(line, self.any_whitespace)) for line in self.sample).most_common(1)[0][0]


# What Arrow reads, which is more than needed: blanks around a number, and hexadecimal.
INTEGER = re.compile(r"[ \t]*(-?)0*([0-9]{1,10})[ \t]*|[ \t]*0[xX][0-9a-fA-F]{1,8}[ \t]*")
NUMBER = re.compile(
    r"[ \t]*[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|inf(inity)?|nan(\(\w*\))?)[ \t]*", re.IGNORECASE | re.ASCII
)


def _is_int32(text: str) -> bool:
    match = INTEGER.fullmatch(text)
    return match is not None and int(match[2] or 0) <= INT32_MAX + (match[1] == "-")


def is_number(text: str) -> bool:
    """Whether `text` is a decimal number."""
    return NUMBER.fullmatch(text) is not None


KINDS = {
    "text": Kind(
        pa.dictionary(pa.int32(), pa.string()), lambda text: not set(text) & set("\"'"), "no quote, or two around it"
    ),
    "integer": Kind(pa.int32(), _is_int32, f"a whole number, at most {INT32_MAX}"),
    "number": Kind(pa.float64(), is_number, "a number"),
    "number or missing": Kind(
        pa.float64(), lambda text: text in MISSING or is_number(text), "a number, or NA for a missing value", True
    ),
}


def split(line: str, any_whitespace: bool) -> list[str]:
    """The fields of one line, without the quotes around them."""
    fields = re.split(r"[ \t]+", line.strip(" \t")) if any_whitespace else line.split("\t")
    if '"' not in line and "'" not in line:
        return fields
    matches = [QUOTED_FIELD.fullmatch(text) for text in fields]
    return [text if match is None else match[2] for text, match in zip(fields, matches, strict=True)]


def is_header(fields: Sequence[str]) -> bool:
    """Whether a line names columns: no row is without a number."""
    return len(fields) > 1 and not any(map(is_number, fields))


def without_header(source: TextSource) -> TextSource:
    """The source with one more line before its rows; raises UserError if none follows."""
    if len(source.sample) == 1:
        raise UserError(f"{source.path}: the file has no rows")
    return replace(source, header_lines=source.header_lines + 1, sample=source.sample[1:])


def with_commented_header(source: TextSource) -> TextSource | None:
    """The source with the comment line just above the rows, if there is one, as the first of them."""
    if not (source.preamble and source.preamble[-1].startswith("#")):
        return None
    header = source.preamble[-1].lstrip("#").strip(" ")
    return replace(
        source,
        preamble=source.preamble[:-1],
        sample=(header, *source.sample),
        header_lines=source.header_lines - 1,
    )


def open_source(path: str | Path) -> TextSource:
    """Look at the beginning of a file.

    Raises UserError if it cannot be read, is damaged, is not text, or has no row.
    """
    path = Path(path)
    text, is_whole = _beginning(path)
    lines = text.split("\n")
    if not is_whole and len(lines) > 1:
        lines.pop()  # cut off somewhere
    rows_from = next((number for number, line in enumerate(lines) if not _is_preamble(line)), len(lines))
    sample = tuple(islice((line.rstrip("\r") for line in lines[rows_from:] if line.strip()), SAMPLE_LINES))
    if not sample:
        raise UserError(f"{path}: the file has no rows")
    return TextSource(path, tuple(line.rstrip("\r") for line in lines[:rows_from]), sample, rows_from)


def _is_preamble(line: str) -> bool:
    return not line.strip() or line.lower().startswith(("#", "track ", "track\t", "browser ", "browser\t"))


def _beginning(path: Path) -> tuple[str, bool]:
    """The first SAMPLE_BYTES of the decompressed file, and whether that is all of it."""
    try:
        with open(path, "rb") as file:
            magic = file.read(18)
            if is_bgzip(magic):
                require_bgzip_end(path, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not magic:
        raise UserError(f"{path}: the file is empty")
    _refuse_foreign(path, magic)
    try:
        with _open_bytes(path) as stream:
            raw = stream.read(SAMPLE_BYTES)
    except DAMAGE as error:
        raise _damaged(path, error) from error
    if raw.startswith(b"BAM\x01"):
        raise UserError(f"{path}: this is a BAM file (expected a table of counts as text, or bgzip around the BAM)")
    _refuse_foreign(path, raw)
    if b"\0" in raw:
        raise UserError(f"{path}: this is not a text file (expected a table of counts, plain, gzip or bgzip)")
    return raw.decode("utf-8-sig", errors="replace"), len(raw) < SAMPLE_BYTES


def is_bgzip(magic: bytes) -> bool:
    """Whether these first bytes of a file (18 are enough) are those of bgzip."""
    return magic.startswith(GZIP_MAGIC + b"\x08\x04") and magic[12:14] == b"BC"


def require_bgzip_end(path: Path, file: io.BufferedReader) -> None:
    """Raise a UserError unless the closing block of bgzip ends the file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - len(BGZF_END)))
    if file.read() != BGZF_END:
        raise UserError(f"{path}: is truncated or damaged (the closing block of a bgzip file is missing)")


def _refuse_foreign(path: Path, magic: bytes) -> None:
    if refused := refused_bytes(magic):
        raise UserError(refused.message(path))


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: is truncated or damaged ({error})")


def _open_bytes(path: Path) -> Any:
    """The decompressed bytes as a readable stream; members of a concatenated gzip file follow each other."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == GZIP_MAGIC
    return igzip.open(path, "rb") if is_gzip else open(path, "rb")


def _blocks(source: TextSource) -> Iterator[bytes]:
    """The rows in blocks of whole lines; blank lines are left in."""
    with _open_bytes(source.path) as stream:
        for _ in range(source.header_lines):
            stream.readline()
        unfinished = [b"" if source.header_lines else stream.read(len(BOM)).removeprefix(BOM)]
        while chunk := stream.read(BLOCK_BYTES):
            end = chunk.rfind(b"\n") + 1
            if end:
                yield b"".join((*unfinished, chunk[:end]))
                unfinished = []
            unfinished.append(chunk[end:])
            if sum(map(len, unfinished)) > LINE_BYTES_MAX:
                raise UserError(f"{source.path}: a line is longer than {LINE_BYTES_MAX} bytes (expected a table)")
        last = b"".join(unfinished)
        source.ending.is_open = bool(last.strip())
        yield last


def _squeezed(lines: bytes) -> bytes:
    """Lines whose runs of spaces and tabs are single tabs, without those at their ends."""
    lines = lines.replace(b" ", b"\t")
    while b"\t\t" in lines:
        lines = lines.replace(b"\t\t", b"\t")
    lines = lines.replace(b"\n\t", b"\n").replace(b"\t\n", b"\n")
    return lines.removeprefix(b"\t").removesuffix(b"\t")


def read_rows(source: TextSource, columns: Sequence[Column]) -> Iterator[Rows]:
    """Parse all rows, a block of a megabyte at a time, and as many blocks at once as the source has threads.

    Raises UserError naming the line that has the wrong number of columns or a value of the wrong kind, or saying that
    the file is truncated.
    """
    first = 0
    parse = partial(_parsed, source, columns)
    with closing(on_threads(parse, _blocks(source), source.threads, ahead=source.threads + 1)) as parsed:
        try:
            for batch in parsed:
                if batch is not None:
                    yield Rows(first, batch.num_rows, _named(batch, columns))
                    first += batch.num_rows
        except pa.ArrowInvalid as error:
            _fail_at_bad_line(source, columns, error)
        except DAMAGE as error:
            raise _damaged(source.path, error) from error
    if first == 0:
        raise UserError(f"{source.path}: the file has no rows")


def _parsed(source: TextSource, columns: Sequence[Column], block: bytes) -> pa.RecordBatch | None:
    """The rows of one block, None if all lines are blank; raises ArrowInvalid."""
    if b"\r" in block:
        block = LINE_END.sub(b"\n", block)
        if b"\r" in block:
            raise pa.ArrowInvalid("a carriage return inside a line")
    if source.any_whitespace:
        block = _squeezed(block)
    has_quotes = b'"' in block or b"'" in block
    if has_quotes:
        block = QUOTED_FIELDS.sub(rb"\2", block)
    if BLANK.fullmatch(block):
        return None
    may_be_missing = [KINDS[column.kind].may_be_missing for column in columns]
    table = csv.read_csv(
        pa.BufferReader(block),
        read_options=csv.ReadOptions(
            column_names=[str(index) for index in range(source.column_count)],
            block_size=len(block) + 1,
            use_threads=False,
        ),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(
            column_types={str(column.place): KINDS[column.kind].arrow_type for column in columns},
            include_columns=[str(column.place) for column in columns],
            null_values=MISSING if any(may_be_missing) else [],
        ),
    )
    (batch,) = table.to_batches()
    if any(batch.column(place).null_count for place, may in enumerate(may_be_missing) if not may):
        raise pa.ArrowInvalid("a value is missing")
    if has_quotes and not _texts_are_valid(batch, columns):
        raise pa.ArrowInvalid("a quote inside a value")
    return batch


def _texts_are_valid(batch: pa.RecordBatch, columns: Sequence[Column]) -> bool:
    texts = (batch.column(place) for place, column in enumerate(columns) if column.kind == "text")
    return all(KINDS["text"].is_valid(value) for text in texts for value in text.dictionary.to_pylist())


def _named(batch: pa.RecordBatch, columns: Sequence[Column]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for place, column in enumerate(columns):
        array = batch.column(place)
        if column.kind == "text":
            values[column.name] = TextColumn(_numbers(array.indices), tuple(array.dictionary.to_pylist()))
        else:
            values[column.name] = _numbers(array)
    return values


def _numbers(array: pa.Array) -> np.ndarray:
    """A primitive array, nan where it is null; a view if nothing is.

    Its own to_numpy() would import pandas, which takes longer than parsing a small file.
    """
    values = np.frombuffer(array.buffers()[1], dtype=str(array.type).replace("double", "float64"))
    values = values[array.offset : array.offset + len(array)]
    if not array.null_count:
        return values
    is_present = np.unpackbits(np.frombuffer(array.buffers()[0], dtype=np.uint8), bitorder="little").astype(bool)
    return np.where(is_present[array.offset : array.offset + len(array)], values, np.nan)


def _row_lines(source: TextSource) -> Iterator[tuple[int, str]]:
    """Line number (1-based) and text of every row."""
    with _open_bytes(source.path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="\n")
        for number, line in enumerate(text, start=1):
            line = line.rstrip("\r\n")
            is_blank = not (line.strip() if source.any_whitespace else line)
            if number > source.header_lines and not is_blank:
                yield number, line


def _fail_at_bad_line(source: TextSource, columns: Sequence[Column], error: Exception) -> NoReturn:
    """Raise a UserError for the first line that the parser cannot have read."""
    try:
        for number, line in _row_lines(source):
            if "\r" in line:
                raise UserError(f"{source.path}: line {number}: a carriage return is inside (expected at the end)")
            fields = split(line, source.any_whitespace)
            if len(fields) != source.column_count:
                raise UserError(
                    f"{source.path}: line {number}: {_count(len(fields), 'column')} (expected {source.column_count})"
                )
            for column in columns:
                kind = KINDS[column.kind]
                if not kind.is_valid(fields[column.place]):
                    raise _field_error(source, number, column, fields, kind.expected)
            if REPLACEMENT in line:
                raise UserError(f"{source.path}: line {number}: bytes that are not text (expected UTF-8)")
    except DAMAGE as damage:
        raise _damaged(source.path, damage) from damage
    raise UserError(f"{source.path}: {' '.join(str(error).split())}") from error


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _field_error(source: TextSource, number: int, column: Column, fields: list[str], expected: str) -> UserError:
    return UserError(
        f"{source.path}: line {number}: column {column.place + 1} ({column.name}) is {fields[column.place]!r}"
        f" (expected {expected})"
    )


def require(source: TextSource, rows: Rows, is_valid: np.ndarray, column: Column, expected: str) -> None:
    """Raise a UserError naming line and value of the first row where `is_valid` (bool [rows]) is False."""
    if is_valid.all():
        return
    number, line = row_line(source, rows.first + int(np.argmin(is_valid)))
    raise _field_error(source, number, column, split(line, source.any_whitespace), expected)


def row_line(source: TextSource, row: int) -> tuple[int, str]:
    """Number (1-based) and text of the line of a row (0-based, blank lines not counted); reads the file up to it."""
    return next(islice(_row_lines(source), row, None))


def require_column_count(source: TextSource, least: int, most: int) -> None:
    """Raise a UserError naming the first row's line unless the file has `least` to `most` columns."""
    if least <= source.column_count <= most:
        return
    expected = str(least) if least == most else f"{least} or more" if most > 99 else f"{least} to {most}"
    number, line = next(_row_lines(source), (source.header_lines + 1, ""))
    found = _count(len(split(line, source.any_whitespace)), "column")
    raise UserError(f"{source.path}: line {number}: {found} (expected {expected})")
