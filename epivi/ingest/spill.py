"""Rows of a file kept by contig until all of it is read: in memory as long as they are few, then in an unnamed file.

Input files name contigs in any order and may come back to one; the output wants them one by one in natural order. A
contig's rows are therefore held here, 14 bytes each, and read back together: memory is bounded by the largest contig.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from epivi.ingest.layout import Counts

MEMORY_BYTES = 1 << 28
DTYPES = tuple(np.dtype(name) for name in ("int32", "int8", "int8", "int32", "int32"))  # of the columns of Counts
ROW_BYTES = sum(dtype.itemsize for dtype in DTYPES)


class _OnDisk(NamedTuple):
    offset: int  # bytes
    rows: int


class Spill:
    """Append rows of contigs in any order, then take each contig's rows. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._file: Any = None
        self._pieces: dict[str, list[Counts | _OnDisk]] = {}
        self._memory_bytes = 0
        self._disk_bytes = 0
        self._last = ""
        # Contigs whose rows do not stand together in the file.
        self.scattered: set[str] = set()

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    @property
    def contigs(self) -> tuple[str, ...]:
        """Contigs with rows that were not taken, in order of first appearance."""
        return tuple(self._pieces)

    def append(self, contig: str, counts: Counts) -> None:
        """Add rows of one contig."""
        if contig in self._pieces and contig != self._last:
            self.scattered.add(contig)
        self._last = contig
        columns = Counts(*(np.asarray(column, dtype) for column, dtype in zip(counts, DTYPES, strict=True)))
        n_bytes = len(counts.pos0) * ROW_BYTES
        is_small = self._memory_bytes + n_bytes <= MEMORY_BYTES
        self._pieces.setdefault(contig, []).append(columns if is_small else self._written(columns))
        self._memory_bytes += n_bytes if is_small else 0

    def _written(self, counts: Counts) -> _OnDisk:
        if not self._file:
            file = tempfile.TemporaryFile(dir=str(self._directory), buffering=0)  # noqa: SIM115 - closed by the stack
            self._file = self._stack.enter_context(file)
        piece = _OnDisk(self._disk_bytes, len(counts.pos0))
        for column in counts:
            self._disk_bytes += self._file.write(np.ascontiguousarray(column).data)
        return piece

    def take(self, contig: str) -> Counts:
        """All rows of one contig, in the order in which they were added; they are no longer held. Safe on a thread."""
        pieces = [self._read(piece) if isinstance(piece, _OnDisk) else piece for piece in self._pieces.pop(contig)]
        return Counts(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))

    def _read(self, piece: _OnDisk) -> Counts:
        raw = os.pread(self._file.fileno(), piece.rows * ROW_BYTES, piece.offset)
        ends = np.cumsum([piece.rows * dtype.itemsize for dtype in DTYPES])
        starts = [0, *ends[:-1]]
        return Counts(*(np.frombuffer(raw, d, piece.rows, start) for d, start in zip(DTYPES, starts, strict=True)))
