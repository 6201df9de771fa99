"""Loci of one contig after the other -> rows of the counts table, in row groups that suit readers of one contig."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from epivi.ingest.layout import Counts
from epivi.tables.columns import CONTEXTS, STRANDS
from epivi.tables.parquet import TableWriter

# Contigs of fewer rows share row groups of at most twice as many: one batch of a reader, beside which what a row group
# costs, about a thousand bytes, is little.
LARGE_CONTIG_ROWS = 1 << 13


class CountsWriter:
    """Hands contigs to a writer of the counts table: large ones in row groups of their own, small ones together.

    Who reads a large contig touches only its bytes; thousands of small ones cost no row group each, and none is torn.
    """

    def __init__(self, writer: TableWriter) -> None:
        self._writer = writer
        self._contigs: list[str] = []
        self._pending: list[Counts] = []
        self._pending_rows = 0

    def write(self, contig: str, loci: Counts) -> None:
        """Append all loci of one contig."""
        n_rows = len(loci.pos0)
        is_large = n_rows >= LARGE_CONTIG_ROWS
        if is_large or self._pending_rows + n_rows > 2 * LARGE_CONTIG_ROWS:
            self.finish()
        self._contigs.append(contig)
        self._pending.append(loci)
        self._pending_rows += n_rows
        if is_large:
            self.finish()

    def finish(self) -> None:
        """Write what waits for more small contigs."""
        if self._pending:
            self._writer.write(_table(self._contigs, self._pending))
            self._writer.flush()
        self._contigs, self._pending, self._pending_rows = [], [], 0


def _table(contigs: Sequence[str], pieces: Sequence[Counts]) -> pa.Table:
    """The loci of some contigs as columns of the counts table."""
    loci = pieces[0] if len(pieces) == 1 else Counts(*map(np.concatenate, zip(*pieces, strict=True)))
    codes = np.repeat(np.arange(len(pieces)), [len(piece.pos0) for piece in pieces])
    columns = {
        "contig": _labels(codes, contigs),
        "pos": _array(loci.pos0),
        "strand": _labels(loci.strand, STRANDS),
        "context": _labels(loci.context, CONTEXTS),
        "meth": _array(loci.meth),
        "total": _array(loci.total),
    }
    return pa.table(columns)


# pa.array() would look for pandas and import it, which takes longer than a small file does; buffers do not.
def _array(values: np.ndarray) -> pa.Array:
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _labels(codes: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    texts = [name.encode() for name in names]
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    dictionary = pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(texts)))
    return pa.DictionaryArray.from_arrays(_array(codes.astype(np.int32)), dictionary)
