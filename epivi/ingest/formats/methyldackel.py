"""MethylDackel bedGraph (`extract`, `mergeContext`): contig, start, end (0-based), percent, methylated, unmethylated.

After the tool's README ("Single Cytosine methylation metrics extraction", "Per-CpG/CHG metrics"): one base is a single
cytosine of unknown strand; two bases are a whole CpG and three a whole CHG, both strands together (`--mergeContext`).
The description in the track line ends with the context ("CpG methylation levels", "CHG merged methylation levels");
`MethylDackel mergeContext` writes "merged Methylation metrics" for all contexts that it was given. The percentage is
cut off to a whole number. Where no line names the context, single cytosines are of the context that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

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
from epivi.tables.columns import CONTEXTS

CONTIG = Column(0, "contig", "text")
START = Column(1, "start", "integer")
END = Column(2, "end", "integer")
PERCENT = Column(3, "percent", "number")
METH = Column(4, "methylated", "integer")
UNMETH = Column(5, "unmethylated", "integer")
COLUMNS = (CONTIG, START, END, PERCENT, METH, UNMETH)

CHG, CHH = CONTEXTS.index("CHG"), CONTEXTS.index("CHH")
# Bases of a row -> context, where the two strands of a site are one row; a CHH has no second strand to merge.
MERGED = {2: CG, 3: CHG}
STATED = re.compile(r"\b(CpG|CHG|CHH)( merged)? methylation levels")
STATED_CONTEXTS = {"CpG": CG, "CHG": CHG, "CHH": CHH}
MERGED_DESCRIPTION = "merged Methylation metrics"


def recognises(row: Sequence[str]) -> bool:
    """Whether one row has this form; below no track line it may as well be a whole CpG of Bismark coverage."""
    return (
        len(row) == 6 and all(row[index].isdigit() for index in (1, 2, 4, 5)) and row[2] != row[1] and is_number(row[3])
    )


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming line and value of a bad row."""
    require_column_count(source, 6, 6)
    stated = _stated_context(source)
    single = _single_context(source, settings) if stated is None else stated
    is_assumed = stated is None and not _is_merged(source)
    for rows in read_rows(source, COLUMNS):
        width = _checked_width(source, rows, stated)
        yield _block(rows, width, single, settings, is_assumed=is_assumed)


def _stated_context(source: TextSource) -> int | None:
    """The one context that the track line names."""
    matches = (STATED.search(line) for line in source.preamble)
    return next((STATED_CONTEXTS[match[1]] for match in matches if match), None)


def _single_context(source: TextSource, settings: IngestSettings) -> int:
    """Context of single cytosines where the track line names none."""
    if _is_merged(source):
        return CHH  # the other two are merged, also where one strand alone is covered
    return only_context(source, settings, "MethylDackel")


def _is_merged(source: TextSource) -> bool:
    return any(MERGED_DESCRIPTION in line for line in source.preamble)


def _checked_width(source: TextSource, rows: Rows, stated: int | None) -> np.ndarray:
    """Bases of every row, int64 [rows] (the largest 32-bit start has no base after it)."""
    start, end = rows.columns["start"], rows.columns["end"]
    require(source, rows, start >= 0, START, "a 0-based position")
    width = end.astype(np.int64) - start
    allowed = [1, *(bases for bases, context in MERGED.items() if stated in (None, context))]
    require(source, rows, np.isin(width, allowed), END, f"the start plus {' or '.join(map(str, allowed))}")
    require_percent(source, rows, PERCENT)
    require_counts(source, rows, METH, UNMETH)
    return width


def _block(rows: Rows, width: np.ndarray, single: int, settings: IngestSettings, *, is_assumed: bool) -> Block:
    columns = rows.columns
    total = columns["methylated"] + columns["unmethylated"]
    # METHOD: a merged CHG stays at its first base without a strand; the strands of CHGs are not merged anywhere else.
    strand_of_width = np.array([UNKNOWN, UNKNOWN, combined_strand(settings), UNKNOWN], dtype=np.int8)
    context_of_width = np.array([single, single, MERGED[2], MERGED[3]], dtype=np.int8)
    counts = Counts(columns["start"], strand_of_width[width], context_of_width[width], columns["methylated"], total)
    contradicting = percent_contradicts(columns["percent"], counts.meth, total)
    return Block(
        columns["contig"],
        counts,
        dropped={},
        percent_checked=int(np.count_nonzero(total)),
        percent_contradicting=int(np.count_nonzero(contradicting)),
        layout=f"strand unknown, single cytosines {CONTEXTS[single]}",
        first_contradicting=first_row(rows, contradicting),
        context_is_assumed=is_assumed and bool((width == 1).any()),
    )
