"""Methylome tables of methimpute and AlphaBeta: columns found by their name in the header, positions 1-based.

Only the counts are read; state calls and their posteriors are left where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from epivi.ingest.header import named_columns
from epivi.ingest.layout import (
    MINUS,
    PLUS,
    UNKNOWN,
    Block,
    Counts,
    IngestSettings,
    context_codes,
    require_counts,
    require_partner_base,
    strand_codes,
)
from epivi.ingest.text import Column, Rows, TextSource, read_rows, require

# header name -> kind
COLUMNS = {
    "seqnames": "text",
    "start": "integer",
    "strand": "text",
    "context": "text",
    "counts.methylated": "integer",
    "counts.total": "integer",
}
STRAND_CODES = {"+": PLUS, "-": MINUS, "*": UNKNOWN, ".": UNKNOWN}


def recognises(row: Sequence[str]) -> bool:
    """Whether one row is the header of such a table."""
    return set(COLUMNS) <= {name.lower() for name in row}


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming the missing column, or line and value of a bad row."""
    source, columns = named_columns(source, COLUMNS)
    for rows in read_rows(source, tuple(columns.values())):
        counts = _counts(source, rows, columns)
        if settings.merge_strands:
            require_partner_base(source, rows, counts, columns["strand"])
        yield Block(rows.columns["seqnames"], counts, {}, 0, 0, layout="context and strand in the file")


def _counts(source: TextSource, rows: Rows, columns: dict[str, Column]) -> Counts:
    values = rows.columns
    require(source, rows, values["start"] >= 1, columns["start"], "a 1-based position")
    require_counts(source, rows, columns["counts.methylated"], columns["counts.total"])
    meth, total = values["counts.methylated"], values["counts.total"]
    require(source, rows, meth <= total, columns["counts.methylated"], "at most counts.total")
    return Counts(
        pos0=values["start"] - np.int32(1),
        strand=strand_codes(source, rows, columns["strand"], STRAND_CODES, expected="+, - or *"),
        context=context_codes(source, rows, columns["context"]),
        meth=meth,
        total=total,
    )
