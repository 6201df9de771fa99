"""Rows of a file kept by contig until all of it is read: in memory while few, then in an unnamed temporary file.

Input files name contigs in any order and may come back to one; the output wants them one by one in natural order. A
contig's rows are therefore held here, 14 bytes each, and read back together: memory is bounded by the largest contig.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from epivi.ingest.layout import Counts

MEMORY_BYTES = 1 << 26
DTYPES = tuple(np.dtype(name) for name in ("int32", "int8", "int8", "int32", "int32"))  # of the columns of Counts


class _Piece(NamedTuple):
    offset: int  # bytes
    rows: int


class Spill:
    """Append rows of contigs in any order, then take each contig's rows. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._file: Any = None
        self._pieces: dict[str, list[_Piece]] = {}
        self._size = 0
        self._last = ""
        # Contigs whose rows do not stand together in the file.
        self.scattered: set[str] = set()

    def __enter__(self) -> Spill:
        file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES, dir=str(self._directory))
        self._file = self._stack.enter_context(file)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @property
    def contigs(self) -> tuple[str, ...]:
        """Contigs with rows, in order of first appearance."""
        return tuple(self._pieces)

    def append(self, contig: str, counts: Counts) -> None:
        """Add rows of one contig."""
        if contig in self._pieces and contig != self._last:
            self.scattered.add(contig)
        self._last = contig
        rows = len(counts.pos0)
        self._pieces.setdefault(contig, []).append(_Piece(self._size, rows))
        for column, dtype in zip(counts, DTYPES, strict=True):
            self._size += self._file.write(np.ascontiguousarray(column, dtype=dtype).data)

    def take(self, contig: str) -> Counts:
        """All rows of one contig, in the order in which they were added."""
        pieces = [self._read(piece) for piece in self._pieces[contig]]
        return Counts(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))

    def _read(self, piece: _Piece) -> Counts:
        self._file.seek(piece.offset)
        columns = (np.frombuffer(self._file.read(piece.rows * dtype.itemsize), dtype) for dtype in DTYPES)
        return Counts(*columns)
