"""allc of methylpy and ALLCools: contig, position (1-based), strand, bases, methylated, coverage, call, and more.

After the section "Output format" of methylpy's README: the bases are three or more, the cytosine first, which tell the
context; the seventh column marks significant methylation with 1 (and is 1 where nothing was tested), which is not used;
two columns about variants may follow (`--add-snp-info`). Positions on the - strand are those of its own cytosine. The
tool writes no header, but published files may have one, whose second and third names are `pos` and `strand`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from epivi.errors import UserError
from epivi.ingest.layout import (
    MINUS,
    OTHER_CONTEXT,
    PLUS,
    Block,
    Counts,
    IngestSettings,
    require_counts,
    require_partner_base,
    strand_codes,
)
from epivi.ingest.text import Column, Rows, TextColumn, TextSource, read_rows, require, require_column_count, split
from epivi.schema import CONTEXTS

CONTIG = Column(0, "contig", "text")
POSITION = Column(1, "position", "integer")
STRAND = Column(2, "strand", "text")
BASES = Column(3, "bases", "text")
METH = Column(4, "methylated", "integer")
COVERAGE = Column(5, "coverage", "integer")
CALL = Column(6, "call", "integer")
COLUMNS = (CONTIG, POSITION, STRAND, BASES, METH, COVERAGE, CALL)

NOT_G = frozenset("ACTMWYH")  # bases and IUPAC codes that exclude G
IUPAC = frozenset("ACGTRYSWKMBDHVN")


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has this form, or is the header of such a table."""
    return 7 <= len(row) <= 9 and (
        _is_header(row)
        or (all(row[index].isdigit() for index in (1, 4, 5, 6)) and row[2] in ("+", "-") and _is_context(row[3]))
    )


def _is_header(row: Sequence[str]) -> bool:
    return tuple(row[1:3]) == ("pos", "strand")


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming line and value of a bad row."""
    source = _without_header(source)
    require_column_count(source, 7, 9)
    for rows in read_rows(source, COLUMNS):
        counts = _counts(source, rows)
        if settings.merge_strands:
            require_partner_base(source, rows, counts, STRAND)
        yield Block(rows.columns["contig"], counts, {}, 0, 0, layout="context and strand in the file")


def _without_header(source: TextSource) -> TextSource:
    if not _is_header(split(source.sample[0], source.any_whitespace)):
        return source
    if len(source.sample) == 1:
        raise UserError(f"{source.path}: the file has no rows")
    return replace(source, header_lines=source.header_lines + 1)


def _counts(source: TextSource, rows: Rows) -> Counts:
    columns = rows.columns
    require(source, rows, columns["position"] >= 1, POSITION, "a 1-based position")
    bases: TextColumn = columns["bases"]
    is_context = bases.lookup([_is_context(value) for value in bases.values], dtype=bool)
    require(source, rows, is_context, BASES, "bases from the cytosine on, without bases before it")
    require_counts(source, rows, METH, COVERAGE)
    require(source, rows, columns["methylated"] <= columns["coverage"], METH, "at most the coverage")
    require(source, rows, np.isin(columns["call"], (0, 1)), CALL, "0 or 1")
    return Counts(
        pos0=columns["position"] - np.int32(1),
        strand=strand_codes(source, rows, STRAND, {"+": PLUS, "-": MINUS}, expected="+ or -"),
        context=bases.lookup([_context(value) for value in bases.values]),
        meth=columns["methylated"],
        total=columns["coverage"],
    )


def _is_context(bases: str) -> bool:
    return bases.startswith("C") and IUPAC.issuperset(bases)


def _context(bases: str) -> int:
    """Index into schema.CONTEXTS; "." where an unknown or missing base leaves it open."""
    second, third = bases[1:2], bases[2:3]
    if second == "G":
        return CONTEXTS.index("CG")
    if second not in NOT_G or not (third == "G" or third in NOT_G):
        return OTHER_CONTEXT
    return CONTEXTS.index("CHG" if third == "G" else "CHH")
