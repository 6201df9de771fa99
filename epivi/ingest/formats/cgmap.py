"""CGmap of BS-Seeker2 and CGmapTools: contig, base, position (1-based), context, two bases, level, methylated, total.

After the section "Output files" of BS-Seeker2's README: the base is that of the + strand, so that G is a cytosine of
the - strand at its own position; the context is "--" where the sequence leaves it open; the level, to two decimals, is
the share of the two counts and `na` without reads. CGmapTools adds the strands of a CpG at its C.
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
    first_row,
    percent_contradicts,
    require_counts,
    require_partner_base,
    strand_codes,
)
from epivi.ingest.levels import require_level
from epivi.ingest.text import Column, Rows, TextSource, read_rows, require, require_column_count

CONTIG = Column(0, "contig", "text")
BASE = Column(1, "base", "text")
POSITION = Column(2, "position", "integer")
CONTEXT = Column(3, "context", "text")
LEVEL = Column(5, "level", "number or missing")
METH = Column(6, "methylated", "integer")
TOTAL = Column(7, "total", "integer")
COLUMNS = (CONTIG, BASE, POSITION, CONTEXT, LEVEL, METH, TOTAL)

STRAND_OF_BASE = {"C": PLUS, "G": MINUS}


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has this form."""
    return (
        len(row) == 8
        and row[1] in STRAND_OF_BASE
        and context_of(row[3]) >= 0
        and all(row[index].isdigit() for index in (2, 6, 7))
    )


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming line and value of a bad row."""
    require_column_count(source, 8, 8)
    for rows in read_rows(source, COLUMNS):
        counts = _counts(source, rows)
        if settings.merge_strands:
            require_partner_base(source, rows, counts, BASE)
        contradicting = percent_contradicts(100.0 * rows.columns["level"], counts.meth, counts.total)
        yield Block(
            rows.columns["contig"],
            counts,
            dropped={},
            percent_checked=int(np.count_nonzero(counts.total)),
            percent_contradicting=int(np.count_nonzero(contradicting)),
            layout="context and strand in the file",
            first_contradicting=first_row(rows, contradicting),
        )


def _counts(source: TextSource, rows: Rows) -> Counts:
    columns = rows.columns
    require(source, rows, columns["position"] >= 1, POSITION, "a 1-based position")
    require_counts(source, rows, METH, TOTAL)
    require(source, rows, columns["methylated"] <= columns["total"], METH, "at most the total")
    require_level(source, rows, LEVEL, columns["total"])
    return Counts(
        pos0=columns["position"] - np.int32(1),
        strand=strand_codes(source, rows, BASE, STRAND_OF_BASE, expected="C or G"),
        context=context_codes(source, rows, CONTEXT),
        meth=columns["methylated"],
        total=columns["total"],
    )
