"""allc of methylpy and ALLCools: contig, position (1-based), strand, bases, methylated, coverage, call, and more.

After the section "Output format" of methylpy's README: the bases are three or more, the cytosine first, which give the
context; the seventh column marks significant methylation with 1 (and is 1 where nothing was tested), which is not used;
two columns about variants may follow (`--add-snp-info`). Positions on the - strand are those of its own cytosine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from epivi.ingest.layout import (
    MINUS,
    PLUS,
    Block,
    Counts,
    IngestSettings,
    context_codes,
    context_of,
    require_counts,
    require_partner_base,
    strand_codes,
)
from epivi.ingest.text import Column, Rows, TextSource, read_rows, require, require_column_count

CONTIG = Column(0, "contig", "text")
POSITION = Column(1, "position", "integer")
STRAND = Column(2, "strand", "text")
BASES = Column(3, "bases", "text")
METH = Column(4, "methylated", "integer")
COVERAGE = Column(5, "coverage", "integer")
CALL = Column(6, "call", "integer")
COLUMNS = (CONTIG, POSITION, STRAND, BASES, METH, COVERAGE, CALL)


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has this form."""
    return (
        7 <= len(row) <= 9
        and all(row[index].isdigit() for index in (1, 4, 5, 6))
        and row[2] in ("+", "-")
        and context_of(row[3]) >= 0
    )


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming line and value of a bad row."""
    require_column_count(source, 7, 9)
    for rows in read_rows(source, COLUMNS):
        counts = _counts(source, rows)
        if settings.merge_strands:
            require_partner_base(source, rows, counts, STRAND)
        yield Block(rows.columns["contig"], counts, {}, 0, 0, layout="context and strand in the file")


def _counts(source: TextSource, rows: Rows) -> Counts:
    columns = rows.columns
    require(source, rows, columns["position"] >= 1, POSITION, "a 1-based position")
    require_counts(source, rows, METH, COVERAGE)
    require(source, rows, columns["methylated"] <= columns["coverage"], METH, "at most the coverage")
    require(source, rows, np.isin(columns["call"], (0, 1)), CALL, "0 or 1")
    return Counts(
        pos0=columns["position"] - np.int32(1),
        strand=strand_codes(source, rows, STRAND, {"+": PLUS, "-": MINUS}, expected="+ or -"),
        context=context_codes(source, rows, BASES),
        meth=columns["methylated"],
        total=columns["coverage"],
    )
