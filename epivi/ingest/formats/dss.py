"""Tables that DSS takes: a header, contig, position, N (reads) and X (methylated reads).

After `makeBSseqData` of DSS and section 2 of its vignette, which makes them from Bismark coverage: positions are
1-based, and neither strand nor context is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from epivi.ingest.formats.beta_matrix import CONTIG_NAMES, POSITION_NAMES
from epivi.ingest.header import lowered_names, named_columns
from epivi.ingest.layout import UNKNOWN, Block, Counts, IngestSettings, only_context, require_counts
from epivi.ingest.text import TextSource, read_rows, require


def recognises(row: Sequence[str]) -> bool:
    """Whether one row is the header of such a table."""
    names = [name.lower() for name in row]
    return len(names) == 4 and names[0] in CONTIG_NAMES and names[1] in POSITION_NAMES and names[2:] == ["n", "x"]


def read(source: TextSource, settings: IngestSettings) -> Iterator[Block]:
    """Yield the file's rows; raises UserError naming the missing column, or line and value of a bad row."""
    contig, position = _place_names(lowered_names(source))
    source, columns = named_columns(source, {contig: "text", position: "integer", "N": "integer", "X": "integer"})
    context = only_context(source, settings, "DSS")
    for rows in read_rows(source, tuple(columns.values())):
        values = rows.columns
        require(source, rows, values[position] >= 1, columns[position], "a 1-based position")
        require_counts(source, rows, columns["N"], columns["X"])
        require(source, rows, values["X"] <= values["N"], columns["X"], "at most N, the reads")
        counts = Counts(
            pos0=values[position] - np.int32(1),
            strand=np.full(rows.size, UNKNOWN, dtype=np.int8),
            context=np.full(rows.size, context, dtype=np.int8),
            meth=values["X"],
            total=values["N"],
        )
        layout = "context assumed, strand unknown"
        yield Block(values[contig], counts, {}, 0, 0, layout, context_is_assumed=True)


def _place_names(names: Sequence[str]) -> tuple[str, str]:
    """The header's names of contig and position, in small letters, or DSS's own where it has none."""
    contig = next((name for name in names if name in CONTIG_NAMES), "chr")
    return contig, next((name for name in names if name in POSITION_NAMES), "pos")
