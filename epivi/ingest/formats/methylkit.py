"""methylKit text: a header, then chrBase, chr, base (1-based), strand (F or R), coverage, freqC, freqT (percent).

Written by methylKit's `processBismarkAln` and by `MethylDackel extract --methylKit`, both with two decimals. A cytosine
of the - strand (R) stands at its own position. methylKit's coverage also counts reads with another base than C and T,
which are at most a tenth; such reads are not informative, and the reads here are those of freqC and freqT. The file
does not say its context: each context has a file of its own. methylKit reads further tables by their column numbers;
those with the names `chr`, `start` (or `base`), `strand`, `coverage`, `freqC` and `freqT` are read here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from epivi.ingest.header import lowered_names, named_columns
from epivi.ingest.layout import (
    MINUS,
    PLUS,
    Block,
    Counts,
    IngestSettings,
    first_row,
    only_context,
    require_counts,
    require_partner_base,
    require_percent,
    strand_codes,
)
from epivi.ingest.levels import is_extrapolated, level_counts
from epivi.ingest.text import Column, Rows, TextSource, read_rows, require

KINDS = {"chr": "text", "strand": "text", "coverage": "integer", "freqC": "number", "freqT": "number"}
POSITIONS = ("base", "start")
STRAND_CODES = {"F": PLUS, "R": MINUS, "+": PLUS, "-": MINUS}

HALF_UNIT = 0.00005  # of a fraction: percents have two decimals
# methylKit writes a cytosine if more than 90 of 100 bases there are C or T; each of the two percents is rounded.
SUM_LEAST, SUM_MOST = 89.98, 100.02


def recognises(row: Sequence[str]) -> bool:
    """Whether one row is the header of such a table."""
    names = {name.lower() for name in row}
    return {name.lower() for name in KINDS} <= names and not names.isdisjoint(POSITIONS)


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming the missing column, or line and value of a bad row."""
    names = lowered_names(source)
    position = next((name for name in POSITIONS if name in names), POSITIONS[0])
    source, columns = named_columns(source, {**KINDS, position: "integer"})
    context = only_context(source, settings, "methylKit")
    for rows in read_rows(source, tuple(columns.values())):
        yield _block(source, rows, columns, columns[position], context, settings)


def _block(
    source: TextSource,
    rows: Rows,
    columns: dict[str, Column],
    position: Column,
    context: int,
    settings: IngestSettings,
) -> Block:
    values = rows.columns
    require(source, rows, values[position.name] >= 1, position, "a 1-based position")
    require_counts(source, rows, columns["coverage"])
    coverage = values["coverage"]
    for name in ("freqC", "freqT"):
        require_percent(source, rows, columns[name])
    both = values["freqC"] + values["freqT"]
    is_sum = (coverage == 0) | ((both >= SUM_LEAST) & (both <= SUM_MOST))
    require(source, rows, is_sum, columns["freqT"], "a percentage that with freqC makes 90 to 100")
    methylated = level_counts(values["freqC"] / 100.0, coverage, HALF_UNIT)
    unmethylated = level_counts(values["freqT"] / 100.0, coverage, HALF_UNIT)
    contradicts = methylated.contradicts | unmethylated.contradicts
    counts = Counts(
        pos0=values[position.name] - np.int32(1),
        strand=strand_codes(source, rows, columns["strand"], STRAND_CODES, expected="F, R, + or -"),
        context=np.full(rows.size, context, dtype=np.int8),
        meth=methylated.meth,
        total=methylated.meth + unmethylated.meth,
    )
    if settings.merge_strands:
        require_partner_base(source, rows, counts, columns["strand"])
    return Block(
        values["chr"],
        counts,
        dropped={},
        percent_checked=int(np.count_nonzero(coverage)),
        percent_contradicting=int(np.count_nonzero(contradicts)),
        layout="methylKit, percents of whole reads, context assumed",
        is_extrapolated=is_extrapolated(methylated, coverage, settings),
        first_contradicting=first_row(rows, contradicts),
        context_is_assumed=True,
    )
