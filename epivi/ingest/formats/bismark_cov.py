"""Bismark coverage (.cov): contig, start, end (both 1-based), percent, methylated, unmethylated.

The file says neither strand nor context. Rows one base long are single cytosines of unknown strand; rows two bases long
(`coverage2cytosine --merge_CpG`) are whole CpGs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from epivi.base.errors import UserError
from epivi.ingest.layout import (
    CG,
    UNKNOWN,
    Block,
    Counts,
    IngestSettings,
    combined_strand,
    first_row,
    only_context,
    percent_contradicts,
    require_counts,
    require_percent,
)
from epivi.ingest.text import Column, Rows, TextSource, is_number, read_rows, require, require_column_count

CONTIG = Column(0, "contig", "text")
START = Column(1, "start", "integer")
END = Column(2, "end", "integer")
PERCENT = Column(3, "percent", "number")
METH = Column(4, "methylated", "integer")
UNMETH = Column(5, "unmethylated", "integer")
COLUMNS = (CONTIG, START, END, PERCENT, METH, UNMETH)


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has this form."""
    return len(row) == 6 and all(row[index].isdigit() for index in (1, 2, 4, 5)) and is_number(row[3])


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming line and value of a bad row."""
    require_column_count(source, 6, 6)
    if source.has_track_line:
        raise UserError(f"{source.path}: a track line opens the file, so its positions are those of a bedGraph"
                        " (expected Bismark coverage, 1-based)")  # fmt: skip
    context = only_context(source, settings, "Bismark coverage")
    for rows in read_rows(source, COLUMNS):
        _check(source, rows, context)
        yield _block(rows, context, settings)


def _check(source: TextSource, rows: Rows, context: int) -> None:
    start, end = rows.columns["start"], rows.columns["end"]
    require(source, rows, start >= 1, START, "a 1-based position")
    is_whole_cpg = end == start + 1
    allowed = (end == start) | is_whole_cpg if context == CG else end == start
    require(
        source, rows, allowed, END, "the start, or the base after it for a whole CpG" if context == CG else "the start"
    )
    require_percent(source, rows, PERCENT)
    require_counts(source, rows, METH, UNMETH)
    # Two CpGs cannot overlap: such rows are single cytosines with 0-based starts, which look the same line by line.
    contig = rows.columns["contig"].codes
    overlaps = np.zeros(rows.size, dtype=bool)
    overlaps[1:] = is_whole_cpg[1:] & is_whole_cpg[:-1] & (np.diff(start) == 1) & (contig[1:] == contig[:-1])
    require(source, rows, ~overlaps, START, "no overlap with the CpG before; methyldackel is the zero-based format")


def _block(rows: Rows, context: int, settings: IngestSettings) -> Block:
    columns = rows.columns
    total = columns["methylated"] + columns["unmethylated"]
    is_whole_cpg = columns["end"] > columns["start"]
    counts = Counts(
        pos0=columns["start"] - np.int32(1),
        strand=np.where(is_whole_cpg, combined_strand(settings), UNKNOWN).astype(np.int8),
        context=np.full(rows.size, context, dtype=np.int8),
        meth=columns["methylated"],
        total=total,
    )
    contradicting = percent_contradicts(columns["percent"], counts.meth, total)
    return Block(
        columns["contig"],
        counts,
        dropped={},
        percent_checked=int(np.count_nonzero(total)),
        percent_contradicting=int(np.count_nonzero(contradicting)),
        layout="context assumed, strand unknown",
        first_contradicting=first_row(rows, contradicting),
        context_is_assumed=not is_whole_cpg.all(),
    )
