"""dnmtools `counts` and `sym` (before, methpipe): contig, position (0-based), strand, context, level, reads.

After the pages of `counts` and `sym` in the tool's documentation: a cytosine of the - strand stands at its own
position; contexts are CpG, CHH, CXG and CCG, and an x after one marks a site that the reads show mutated (an A opposite
the C). Levels have six digits. `sym` adds the strands of a CpG at its C, and leaves out both where one is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from epivi.base.errors import UserError
from epivi.ingest.layout import (
    CG,
    MINUS,
    PLUS,
    Block,
    Counts,
    IngestSettings,
    first_row,
    require_counts,
    require_partner_base,
    strand_codes,
)
from epivi.ingest.levels import is_extrapolated, level_counts, require_level
from epivi.ingest.text import Column, Rows, TextColumn, TextSource, is_number, read_rows, require, require_column_count
from epivi.tables.columns import CONTEXTS

CONTIG = Column(0, "contig", "text")
POSITION = Column(1, "position", "integer")
STRAND = Column(2, "strand", "text")
CONTEXT = Column(3, "context", "text")
LEVEL = Column(4, "level", "number")
READS = Column(5, "reads", "integer")
COLUMNS = (CONTIG, POSITION, STRAND, CONTEXT, LEVEL, READS)

CHG, CHH = CONTEXTS.index("CHG"), CONTEXTS.index("CHH")
CPG = "CpG"
CONTEXT_CODES = {CPG: CG, "CXG": CHG, "CCG": CHG, "CHG": CHG, "CHH": CHH}
MARK = "x"
STRAND_CODES = {"+": PLUS, "-": MINUS}
HALF_UNIT = 5e-7  # six digits of a fraction
NANO_COLUMNS = 8


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has this form, or that of `counts-nano`, which the reader refuses."""
    return (
        len(row) in (6, NANO_COLUMNS)
        and row[1].isdigit()
        and row[2] in STRAND_CODES
        and row[3].removesuffix(MARK) in CONTEXT_CODES
        and is_number(row[4])
        and (row[5].isdigit() or len(row) == NANO_COLUMNS)
    )


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming line and value of a bad row."""
    if source.column_count == NANO_COLUMNS:
        raise UserError(
            f"{source.path}: the rows are those of dnmtools counts-nano, whose levels are expected values and no counts"
            " of reads (expected the modBAM file that they were made from, or dnmtools counts)"
        )
    require_column_count(source, 6, 6)
    before: Rows | None = None
    for rows, after in pairwise(chain(read_rows(source, COLUMNS), (None,))):
        assert rows is not None  # only the last is
        yield _block(source, rows, _is_mutated(before, rows, after), settings)
        before = rows


class _Site(NamedTuple):
    """One row at the edge of a block."""

    contig: str
    position: int
    strand: str
    context: str

    @property
    def is_marked(self) -> bool:
        return self.context.endswith(MARK)


def _site(rows: Rows, index: int) -> _Site:
    contig, strand, context = (rows.columns[name] for name in ("contig", "strand", "context"))
    position = int(rows.columns["position"][index])
    return _Site(_text(contig, index), position, _text(strand, index), _text(context, index))


def _text(column: TextColumn, index: int) -> str:
    return column.values[column.codes[index]]


def _is_pair(first: _Site, second: _Site) -> bool:
    """Whether two rows are the two cytosines of one CpG."""
    return (
        first.contig == second.contig
        and second.position - first.position == 1
        and (first.strand, second.strand) == ("+", "-")
        and first.context.removesuffix(MARK) == second.context.removesuffix(MARK) == CPG
    )


def _is_mutated(before: Rows | None, rows: Rows, after: Rows | None) -> np.ndarray:
    """Whether a row is marked, or the other C of its CpG, in the row beside it; bool [rows].

    # METHOD: such sites are left out, as `sym` does. Where C became T in the sample, the mutation and a missing
    # methylation read the same, and the other C of the pair then stands before an A.
    """
    context, contig, position = rows.columns["context"], rows.columns["contig"].codes, rows.columns["position"]
    is_marked = context.lookup([value.endswith(MARK) for value in context.values], dtype=bool)
    is_cpg = context.lookup([value.removesuffix(MARK) == CPG for value in context.values], dtype=bool)
    strand = rows.columns["strand"]
    is_plus = strand.lookup([value == "+" for value in strand.values], dtype=bool)
    is_pair = (np.diff(position) == 1) & (contig[1:] == contig[:-1])
    is_pair &= is_plus[:-1] & ~is_plus[1:] & is_cpg[:-1] & is_cpg[1:]
    is_either = is_pair & (is_marked[1:] | is_marked[:-1])
    is_mutated = is_marked.copy()
    is_mutated[:-1] |= is_either
    is_mutated[1:] |= is_either
    if before is not None and (site := _site(before, -1)).is_marked:
        is_mutated[0] |= _is_pair(site, _site(rows, 0))
    if after is not None and (site := _site(after, 0)).is_marked:
        is_mutated[-1] |= _is_pair(_site(rows, -1), site)
    return is_mutated


def _block(source: TextSource, rows: Rows, is_mutated: np.ndarray, settings: IngestSettings) -> Block:
    columns = rows.columns
    require(source, rows, columns["position"] >= 0, POSITION, "a 0-based position")
    require_counts(source, rows, READS)
    require_level(source, rows, LEVEL, columns["reads"])
    methylated = level_counts(columns["level"], columns["reads"], HALF_UNIT)
    counts = Counts(
        pos0=columns["position"],
        strand=strand_codes(source, rows, STRAND, STRAND_CODES, expected="+ or -"),
        context=_context_codes(source, rows),
        meth=methylated.meth,
        total=columns["reads"],
    )
    if settings.merge_strands:
        require_partner_base(source, rows, counts, STRAND)
    contig: TextColumn = columns["contig"]
    return Block(
        contig._replace(codes=contig.codes[~is_mutated]),
        counts.select(~is_mutated),
        dropped={"mutated": int(np.count_nonzero(is_mutated))},
        percent_checked=int(np.count_nonzero(counts.total)),
        percent_contradicting=int(np.count_nonzero(methylated.contradicts)),
        layout="dnmtools counts, levels of whole reads",
        first_contradicting=first_row(rows, methylated.contradicts),
        is_extrapolated=is_extrapolated(methylated, counts.total, settings),
    )


def _context_codes(source: TextSource, rows: Rows) -> np.ndarray:
    text: TextColumn = rows.columns["context"]
    codes = text.lookup([CONTEXT_CODES.get(value.removesuffix(MARK), -1) for value in text.values])
    require(source, rows, codes >= 0, CONTEXT, f"{', '.join(CONTEXT_CODES)}, perhaps with an x after it")
    return codes
