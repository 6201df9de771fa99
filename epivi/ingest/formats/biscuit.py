"""BED of biscuit's `vcf2bed` and `mergecg`: contig, start, end (0-based), then level and coverage of one sample.

After the tools' own help and what they write; rows of `vcf2bed` are one base, of unknown strand:

- `vcf2bed`: level (three decimals, "." without reads) and coverage;
- `vcf2bed -e`: before these the reference's base (C, or G for a cytosine of the - strand), the context and the two and
  five bases around it;
- `mergecg`: both strands of a CpG, two bases in all, and after level and coverage those of the single strands, which
  are not read;
- with `-c`, percent, methylated and unmethylated reads in place of level and coverage. Such rows of `vcf2bed` look like
  those of Bismark, one base off, so that the format has to be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.ingest.layout import (
    CG,
    MINUS,
    OTHER_CONTEXT,
    PLUS,
    UNKNOWN,
    Block,
    Counts,
    IngestSettings,
    combined_strand,
    first_row,
    only_context,
    percent_contradicts,
    require_counts,
    require_partner_base,
    require_percent,
    strand_codes,
)
from epivi.ingest.levels import is_extrapolated, level_counts, require_level
from epivi.ingest.text import Column, Rows, TextColumn, TextSource, read_rows, require, require_column_count, split
from epivi.tables.columns import CONTEXTS

CONTIG = Column(0, "contig", "text")
START = Column(1, "start", "integer")
END = Column(2, "end", "integer")
BASE = Column(3, "base", "text")
CONTEXT = Column(4, "context", "text")

LEVEL = re.compile(r"[01]\.[0-9]{3}|\.")  # as the tool prints it; others could be counts
STRANDS_TAIL = re.compile(r"C:[0-9.]+:[0-9]+,G:[0-9.]+:[0-9]+(,|$)")
STRAND_OF_BASE = {"C": PLUS, "G": MINUS}
N_PLACE, N_CONTEXT = 3, 4  # columns of the place, and of `-e`
# Names of contexts where GpC were methylated too (NOMe-seq): those of the cell's own methylation.
CONTEXT_CODES = {**{name: CONTEXTS.index(name) for name in ("CG", "CHG", "CHH")}, "HCG": CG,
                 "HCHG": CONTEXTS.index("CHG"), "HCHH": CONTEXTS.index("CHH")}  # fmt: skip
HALF_UNIT = 0.0005  # three decimals


class _Form(NamedTuple):
    """What stands in a file: columns of `-e`, the strands of `mergecg` at the end, the counts of `-c`."""

    has_context: bool
    is_merged: bool
    has_counts: bool

    @property
    def values(self) -> tuple[Column, ...]:
        """Columns of the sample's values."""
        first = N_PLACE + N_CONTEXT * self.has_context
        if self.has_counts:
            return (
                Column(first, "percent", "number or missing"),
                Column(first + 1, "methylated", "integer"),
                Column(first + 2, "unmethylated", "integer"),
            )
        return Column(first, "level", "number or missing"), Column(first + 1, "coverage", "integer")


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has one of these forms, also for several samples, which the reader refuses."""
    if len(row) < 5 or not (row[1].isdigit() and row[2].isdigit()):
        return False
    form, n_values = _form_of(row)
    values = row[N_PLACE + N_CONTEXT * form.has_context :]
    if form.is_merged or form.has_context:
        return n_values >= 2 and values[1].isdigit()
    return n_values % 2 == 0 and n_values >= 2 and all(LEVEL.fullmatch(value) for value in values[::2]) and all(
        value.isdigit() for value in values[1::2]
    )  # fmt: skip


def _form_of(row: Sequence[str]) -> tuple[_Form, int]:
    """The form that one row has, and its number of columns of values."""
    has_context = len(row) >= N_PLACE + N_CONTEXT and row[3] in STRAND_OF_BASE
    is_merged = STRANDS_TAIL.match(row[-1]) is not None
    n_values = len(row) - N_PLACE - N_CONTEXT * has_context - is_merged
    return _Form(has_context, is_merged, n_values == 3), n_values


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming line and value of a bad row."""
    form = _form(source)
    # The rows of merged CpGs that are one base long stand at no CpG of the reference.
    single = OTHER_CONTEXT if form.is_merged or form.has_context else only_context(source, settings, "biscuit")
    place = (CONTIG, START, END, BASE, CONTEXT) if form.has_context else (CONTIG, START, END)
    for rows in read_rows(source, (*place, *form.values)):
        yield _block(source, rows, form, single, settings)


def _form(source: TextSource) -> _Form:
    rows = [split(line, source.any_whitespace) for line in source.sample]
    form, n_values = _form_of(next((row for row in rows if len(row) == source.column_count), rows[0]))
    if n_values > 3:
        raise UserError(
            f"{source.path}: line {source.header_lines + 1}: {n_values} columns of values (expected those of one"
            " sample: `biscuit vcf2bed -s SAMPLE`, and `mergecg` of that)"
        )
    n_columns = N_PLACE + N_CONTEXT * form.has_context + 2 + form.is_merged
    require_column_count(source, n_columns, n_columns + 1)
    return form


def _block(source: TextSource, rows: Rows, form: _Form, single: int, settings: IngestSettings) -> Block:
    columns = rows.columns
    require(source, rows, columns["start"] >= 0, START, "a 0-based position")
    width = columns["end"].astype(np.int64) - columns["start"]
    allowed = (1, 2) if form.is_merged else (1,)
    require(source, rows, np.isin(width, allowed), END, f"the start plus {' or '.join(map(str, allowed))}")
    is_whole = width == 2
    meth, total, contradicts, is_coarse = _reads(source, rows, form, settings)
    if form.has_context:
        strand, context = _strand_and_context(source, rows)
    else:
        strand = np.where(is_whole, combined_strand(settings), UNKNOWN).astype(np.int8)
        context = np.where(is_whole, CG, single).astype(np.int8)
    counts = Counts(columns["start"], strand, context, meth, total)
    if settings.merge_strands and form.has_context:
        require_partner_base(source, rows, counts, BASE)
    said = "context and strand in the file" if form.has_context else "strand unknown"
    return Block(
        columns["contig"],
        counts,
        dropped={},
        percent_checked=int(np.count_nonzero(total)),
        percent_contradicting=int(np.count_nonzero(contradicts)),
        layout=f"biscuit, {'counts' if form.has_counts else 'levels of whole reads'}, {said}",
        is_extrapolated=is_coarse,
        first_contradicting=first_row(rows, contradicts),
        context_is_assumed=not (form.has_context or form.is_merged),
    )


def _reads(
    source: TextSource, rows: Rows, form: _Form, settings: IngestSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Methylated and all reads (int32), where the level contradicts them (bool), all [rows]; if it is too coarse."""
    share, *counted = form.values
    require_counts(source, rows, *counted)
    if form.has_counts:
        meth = rows.columns["methylated"]
        total = meth + rows.columns["unmethylated"]
        require_percent(source, rows, share)
        return meth, total, percent_contradicts(rows.columns["percent"], meth, total), False
    total = rows.columns["coverage"]
    require_level(source, rows, share, total)
    found = level_counts(rows.columns["level"], total, HALF_UNIT)
    return found.meth, total, found.contradicts, is_extrapolated(found, total, settings)


def _strand_and_context(source: TextSource, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    strand = strand_codes(source, rows, BASE, STRAND_OF_BASE, expected="C or G")
    names: TextColumn = rows.columns["context"]
    return strand, names.lookup([CONTEXT_CODES.get(name, OTHER_CONTEXT) for name in names.values])
