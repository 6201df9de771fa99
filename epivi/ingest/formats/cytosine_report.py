"""Bismark cytosine report (CpG or CX): contig, position (1-based), strand, methylated, unmethylated, context, bases."""

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
METH = Column(3, "methylated", "integer")
UNMETH = Column(4, "unmethylated", "integer")
CONTEXT = Column(5, "context", "text")
COLUMNS = (CONTIG, POSITION, STRAND, METH, UNMETH, CONTEXT)


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has this form; the last column (the bases) may be missing."""
    return (
        6 <= len(row) <= 7
        and all(row[index].isdigit() for index in (1, 3, 4))
        and row[2] in ("+", "-")
        and context_of(row[5]) >= 0
    )


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming line and value of a bad row."""
    require_column_count(source, 6, 7)
    for rows in read_rows(source, COLUMNS):
        require(source, rows, rows.columns["position"] >= 1, POSITION, "a 1-based position")
        require_counts(source, rows, METH, UNMETH)
        counts = _counts(source, rows)
        if settings.merge_strands:
            require_partner_base(source, rows, counts, STRAND)
        yield Block(rows.columns["contig"], counts, {}, 0, 0, layout="context and strand in the file")


def _counts(source: TextSource, rows: Rows) -> Counts:
    columns = rows.columns
    return Counts(
        pos0=columns["position"] - np.int32(1),
        strand=strand_codes(source, rows, STRAND, {"+": PLUS, "-": MINUS}, expected="+ or -"),
        context=context_codes(source, rows, CONTEXT),
        meth=columns["methylated"],
        total=columns["methylated"] + columns["unmethylated"],
    )
